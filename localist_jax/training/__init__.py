"""Training: the state and its step, the loop with its hooks, checkpoints, runs and their evaluation."""
