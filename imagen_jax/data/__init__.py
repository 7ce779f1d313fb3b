"""The numpy and grain side: datasets, resizing and per-host batches."""
