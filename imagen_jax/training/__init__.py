"""Training: the state, the optimizer, the pure step and the loop around it."""
