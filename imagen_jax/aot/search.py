"""Orders the settings of a training step by estimates, before any is compiled.

Compiling the paper's base stage takes half an hour, tracing it a second.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax import build
from imagen_jax.aot.programs import embedding
from imagen_jax.aot.roofline import Work, ici_bytes, predicted
from imagen_jax.parallel import mesh
from imagen_jax.parallel.flops import count_flops, jaxpr_flops
from imagen_jax.parallel.peaks import Speed
from imagen_jax.training.setup import Run, Setup, batch_shapes, set_up

PARTS = (1, 2, 4, 8)
# The share of the results that JAX keeps for the backward pass that certainly
# takes memory. XLA computes cheap ones again: base64 on v5e-256 takes 13.95 GiB
# with its state where JAX lists 17.6 (libtpu 0.0.42). With attention maps kept
# it took 20.0 of 28.5, and 12.1 of 14.3 in two parts (libtpu 0.0.52). A
# candidate is left out only if even this share does not fit.
CERTAIN = 0.6
# The examples that are traced: a prime that divides no width of a net, so that
# arrays of the batch are distinguished from weights by their size.
ROWS = 13


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Holds settings of a training step, and estimates of it.

  Attributes:
    accumulate: the number of parts of a batch.
    remat: a recomputation policy for each level.
    seconds: the predicted seconds of a step.
    bytes: what it keeps in a device's memory, at least.
  """

  accumulate: int
  remat: tuple[str, ...]
  seconds: float
  bytes: int


def remat_choices(net: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Yields policies by level, from the least recomputation to the most.

  Levels of high resolution come first, whose blocks are large and cheap.
  """
  levels = len(net["channel_mult" if "channel_mult" in net else "blocks"])
  yield ("none",) * levels
  for less, more in (("none", "products"), ("products", "full")):
    for cut in range(1, levels + 1):
      yield (more,) * cut + (less,) * (levels - cut)


def set_candidate(
  config: Any, accumulate: int, remat: tuple[str, ...]
) -> dict[str, Any]:
  """Sets the settings in a stage's config, and returns them by name."""
  config.train.accumulate = accumulate
  net = config.stage.net
  if "channel_mult" in net:
    net.remat = remat
  else:
    net.blocks = tuple(
      {**block, "remat": policy} for block, policy in zip(net.blocks, remat)
    )
  return {"accumulate": accumulate, "remat": list(remat)}


def ranked(
  config: Any, devices: Mesh, speed: Speed, hbm_bytes: int
) -> list[Candidate]:
  """Returns the candidates that may fit, the fastest first.

  Recomputation adds FLOPs. Every part of a batch gathers the weights and
  reduces the gradients again.

  Args:
    config: a stage's config, changed in place.
    devices: the mesh. The examples of a device are only split into equal parts.
    speed: the published speeds of a device.
    hbm_bytes: the bytes of a device that a program may use.

  Raises:
    ValueError: no candidate fits, by the estimate.
  """
  own = config.data.batch_size // mesh.row_ways(devices)  # of a device
  parts = [n for n in PARTS if own % n == 0]
  set_candidate(config, 1, next(remat_choices(config.stage.net)))
  setup = set_up(build.run(config), devices)
  encoding, state = _encoding_flops(setup), _state_bytes(setup)
  found = []
  for remat in remat_choices(config.stage.net):
    set_candidate(config, 1, remat)
    run = build.run(config)
    flops, activations = example_cost(run, setup.state.params)
    flops = (encoding + flops * run.data.batch_size) / devices.size
    for n in parts:
      sent = ici_bytes(weight_traffic(setup, n))
      seconds = predicted(Work(flops, 0, sent).seconds(speed))
      least = state + int(CERTAIN * activations * own / n)
      found.append(Candidate(n, remat, seconds, least))
  fitting = [each for each in found if each.bytes <= hbm_bytes]
  if not fitting:
    least = min(each.bytes for each in found) / 2**30
    raise ValueError(
      f"--search finds no setting: each needs at least {least:.1f} of the "
      f"{hbm_bytes / 2**30:.2f} GiB of a device, expected a smaller "
      "data.batch_size, more chips or a larger mesh.fsdp"
    )
  return sorted(fitting, key=lambda each: (each.seconds, each.bytes))


def weight_traffic(setup: Setup, parts: int) -> dict[str, dict[str, int]]:
  """Estimates the collectives of a step, by kind, of one device.

  Each part of the batch gathers the weights forwards and backwards, in the
  net's dtype, and reduces the gradients once. The text encoder's weights are
  gathered once. Activations are not counted.
  """
  sharded = lambda tree: sum(
    leaf.size
    for leaf in jax.tree.leaves(tree)
    if not leaf.sharding.is_fully_replicated
  )
  width = jnp.dtype(setup.run.stage.net.dtype).itemsize
  weights = width * sharded(setup.state.params)
  text = sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(setup.text)
    if not leaf.sharding.is_fully_replicated
  )
  if setup.devices.shape["fsdp"] == 1:
    return {"all-reduce": {"bytes": parts * weights}}
  return {
    "all-gather": {"bytes": parts * 2 * weights + text},
    "reduce-scatter": {"bytes": parts * weights},
  }


def example_cost(run: Run, params: Any) -> tuple[int, int]:
  """Counts FLOPs and kept bytes of an example, by one trace.

  Args:
    run: the settings.
    params: the shapes of the net's weights.

  Returns:
    The operations of the net's forward and backward pass, and the bytes that
    JAX keeps between them. The text encoder is in neither.
  """
  stage, rows = run.stage, ROWS
  batch = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype),
    batch_shapes(run),
  )

  def both(params, batch, text):
    draws = stage.draw(jax.random.key(0), rows)
    loss = lambda params: stage.loss(
      params, draws, batch["image"], text, batch.get("lowres")
    )[0]
    losses, backward = jax.vjp(loss, params)
    return backward, backward(losses)

  jaxpr, (kept, _) = jax.make_jaxpr(both, return_shape=True)(
    params, batch, embedding(run.text, rows)
  )
  sizes = [
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(kept)
    if leaf.size % rows == 0  # else weights
  ]
  return jaxpr_flops(jaxpr.jaxpr) // rows, sum(sizes) // rows


def _encoding_flops(setup: Setup) -> int:
  """Counts the operations of the frozen text encoder on a batch."""
  encode, batch = setup.run.text.embedder.__call__, setup.batch
  with jax.set_mesh(setup.devices):
    return count_flops(
      encode, setup.text, batch.get("tokens"), batch.get("mask")
    )


def _state_bytes(setup: Setup) -> int:
  """Counts what state, gradient and text encoder take of a device."""
  state = setup.state
  leaves = jax.tree.leaves((state, state.params, setup.text))
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in leaves
  )
