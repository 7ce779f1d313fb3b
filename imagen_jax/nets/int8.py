"""Weights of one byte, for frozen encoders that are too large otherwise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 127


def quantise(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Quantises kernel [n, m] to q int8 [n, m] and scale float32 [m].

  kernel ~ q * scale, with an error of half a scale at most. The scale is
  symmetric and follows from the largest weight of each output.
  """
  kernel = kernel.astype(np.float32)
  scale = np.abs(kernel).max(0) / LARGEST
  scale = np.where(scale > 0, scale, np.float32(1))
  kernel = kernel / scale
  return np.rint(kernel, out=kernel).astype(np.int8), scale


class Int8Dense(nn.Module):
  """Computes (x q) * kernel_scale of a quantised kernel q, without bias.

  Factors are in dtype, which represents every int8 exactly. Sums and scaling
  are in float32. Initial weights are zeros, since these weights are never
  trained.
  """

  features: int  # of the output
  dtype: jnp.dtype  # of the factors and of the output

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x [..., n] to [..., features] in dtype."""
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.int8)
    scale = self.param("kernel_scale", nn.initializers.ones, shape[1:])
    y = jnp.dot(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    return (y * scale).astype(self.dtype)
