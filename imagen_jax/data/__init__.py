"""Datasets, image resizing and per-host batches, in numpy and grain."""
