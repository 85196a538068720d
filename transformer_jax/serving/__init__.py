"""A translator behind HTTP: requests that share batches, limits, and a page to try it on."""
