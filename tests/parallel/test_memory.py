"""Errors of device memory, as JAX's backends word them."""

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.parallel import memory

# libtpu 0.0.42's, when it compiles; its runtime's; CUDA's.
COMPILING = (
  "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
  "memory space hbm. Used 20.00G of 15.75G hbm. Exceeded hbm capacity by 4.25G"
)
RUNNING = (
  "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate "
  "2.00G. That was not possible. There are 1.50G free.; (0x0x0_HBM0)"
)
GPU = (
  "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3221225472 bytes."
)


@pytest.mark.parametrize(
  ("said", "what"),
  [
    (
      COMPILING,
      "the program needs 20.00 GiB of each device, which has 15.75 GiB: "
      "4.25 GiB are missing",
    ),
    (
      RUNNING,
      "2.00 GiB could not be allocated on a device, of which 1.50 GiB are "
      "free: 0.50 GiB are missing",
    ),
    (GPU, "3.00 GiB could not be allocated on a device"),
    ("RESOURCE_EXHAUSTED: of some kind\nat 0x1", "RESOURCE_EXHAUSTED: of some "
     "kind"),
  ],
)  # fmt: skip
def test_what_is_missing_is_said_with_what_helps(said, what):
  assert memory.too_large(said) == (
    f"out of device memory: {what}; {memory.REMEDY}"
  )


def test_an_array_that_is_too_large_for_this_backend():
  count = 2**48
  with pytest.raises(jax.errors.JaxRuntimeError) as caught:
    jax.block_until_ready(jax.jit(lambda x: jnp.full(count, x) * 2)(1.0))
  assert "1048576.00 GiB could not be" in memory.too_large(str(caught.value))
