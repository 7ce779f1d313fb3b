"""Training: the state, the optimizer and one pure step."""
