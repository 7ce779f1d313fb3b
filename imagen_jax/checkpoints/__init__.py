"""Checkpoints of a training run: saving, verifying, and what may change."""
