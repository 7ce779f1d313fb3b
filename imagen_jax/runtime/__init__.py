"""The machine side: devices, files, progress. Knows no model."""
