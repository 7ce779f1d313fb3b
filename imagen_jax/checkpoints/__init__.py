"""Checkpoints of a training run: saved, verified and compared with a config."""
