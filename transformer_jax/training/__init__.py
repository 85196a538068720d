"""The train step, its schedule and optimiser, checkpoints and the loop."""
