"""Weights of one byte, for encoders that are frozen and too large otherwise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 127


def quantise(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """kernel [n, m] -> (int8 [n, m], scale float32 [m]), whose product it is.

  Symmetric, by the largest weight of each output: off by half a scale at most.
  """
  kernel = kernel.astype(np.float32)
  scale = np.abs(kernel).max(0) / LARGEST
  scale = np.where(scale > 0, scale, np.float32(1))
  kernel = kernel / scale
  return np.rint(kernel, out=kernel).astype(np.int8), scale


class Int8Dense(nn.Module):
  """x [..., n] -> (x kernel) kernel_scale [..., features], without bias.

  Of quantise. The product is in dtype, which every int8 fits into, its sums and
  their scaling in float32. Fresh weights are zeros: they are never trained.
  """

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.int8)
    scale = self.param("kernel_scale", nn.initializers.ones, shape[1:])
    y = jnp.dot(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    return (y * scale).astype(self.dtype)
