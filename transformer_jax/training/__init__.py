"""Training: the step, its schedule and optimiser, a run in its workdir, and the loop."""
