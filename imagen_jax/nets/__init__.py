"""Linen modules; they know no diffusion, no config and no mesh."""
