"""Training: objectives, the loop, and what is kept of it."""
