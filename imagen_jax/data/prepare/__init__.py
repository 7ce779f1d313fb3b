"""Preparation of people's own images and captions as a TFDS dataset."""
