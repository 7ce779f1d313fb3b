"""Diffusion mathematics: arrays in, arrays out, always float32."""
