"""Imagen (Saharia et al. 2022) in JAX: text in, images out."""

__version__ = "0.2.0"
