"""Rows of blocks: what loops and recomputing change, and what they must not."""

import functools
import itertools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.nets.blocks import REMAT, run_blocks
from imagen_jax.nets.efficient_unet import BlockSpec, EfficientUNet
from imagen_jax.nets.layers import Attention
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.flops import count_flops
from imagen_jax.types import Conditioning, TextEmbedding

BATCH, SIDE, LENGTH = 2, 4, 3
PIXELS = SIDE * SIDE
# Compile in half the time; round to bfloat16 wherever the code does.
OPTIONS = {"xla_backend_optimization_level": 0}
OPTIONS["xla_allow_excess_precision"] = False
jit = functools.partial(jax.jit, compiler_options=OPTIONS)


class Row(nn.Module):
  """Convolutions, each adding its x, and attention but for those in bare."""

  widths: tuple[int, ...] = (4, 4, 4, 8)
  bare: tuple[int, ...] = (2, 3)
  remat: str = "none"
  scan: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h, xs):
    def unit(i, width):
      conv = nn.Conv(width, (3, 3), dtype=self.dtype, name=f"conv_{i}")
      attention = Attention(2, 4, 2, dtype=self.dtype, name=f"attn_{i}")
      return conv, None if i in self.bare else attention

    def step(unit, h, x):
      conv, attention = unit
      h = jnp.tanh(conv(h).astype(jnp.float32)) + x.sum()
      h = h if attention is None else attention(h, None)
      return h, h.mean((1, 2, 3))

    units = [unit(i, width) for i, width in enumerate(self.widths)]
    return run_blocks(step, units, h, xs, remat=self.remat, scan=self.scan)


def make_unet(remat="none", mult=(1,), blocks=1, **fields):
  """Of levels of 4x4, 2x2 ..., the last with attention to pixels and text."""
  sides = (SIDE // 2 ** (len(mult) - 1),)
  policies = remat if isinstance(remat, tuple) else (remat,) * len(mult)
  told = SIDE, 8, mult, blocks, sides, sides, 8, "mean", 8, 4
  return UNet(*told, remat=policies, **fields)


def make_efficient(remat="none", **fields):
  block = BlockSpec(8, None, (3, 3), 3, True, True, 2, remat)
  return EfficientUNet((block,), 8, "mean", 8, 4, **fields)


make_t5 = lambda remat="none", **fields: T5Encoder(32, 8, 2, 3, 4, 16, **fields)
MAKERS = {"unet": make_unet, "efficient": make_efficient, "t5": make_t5}


def make_inputs(name="unet"):
  """A batch of two prompts, one with padding, and of what else a net takes."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  mask = np.arange(LENGTH)[None, :] < np.array([[LENGTH], [2]])
  if name == "row":
    return normal(BATCH, SIDE, SIDE, 4), [normal(2) for _ in range(4)]
  if name == "t5":
    return rng.integers(1, 32, mask.shape), mask
  cond = Conditioning(TextEmbedding(normal(*mask.shape, 6), mask))
  return normal(BATCH, SIDE, SIDE, 3), np.array([50.0, 700.0]), cond


def shapes(net, inputs):
  return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


def loss_of(net, inputs, plainly=False):
  """Of params: a scalar to which every output matters, and the outputs."""

  def loss(params):  # plainly, to keep the text, units are called as they are
    out = net.apply({"params": params}, *inputs, mutable=["text"] * plainly)
    out = out[0] if plainly else out
    parts = [jnp.sin(leaf).sum() for leaf in jax.tree.leaves(out)]
    return sum(i * part for i, part in enumerate(parts, 1)), out

  return loss


def computed(params, *args):
  """(gradient, outputs)."""
  return jit(jax.grad(loss_of(*args), has_aux=True))(params)


def assert_same(found, expected):
  """Each of two parts, up to rounding by the largest number in it."""
  for one, two in zip(found, expected, strict=True):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(two))
    assert np.isfinite(largest) and largest > 0.1
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * largest)


def program(net, inputs, **settings):
  """The jaxpr of a net's output."""
  apply = lambda params: net.apply({"params": params}, *inputs, **settings)
  return jax.make_jaxpr(apply)(shapes(net, inputs))


def loops(*args, **settings):
  """The lengths of the loops in it."""
  text = str(program(*args, **settings))
  return [int(length) for length in re.findall(r" length=(\d+)", text)]


def flops(net, inputs):
  """Operations of the gradient of a net's loss."""
  gradient = jax.grad(loss_of(net, inputs), has_aux=True)
  return count_flops(gradient, shapes(net, inputs))


# --- What they must not change.


@pytest.fixture(scope="module")
def plain(random_params):
  """plain(name): inputs, params and results of blocks simply called."""

  @functools.cache
  def plain(name):
    inputs, net = make_inputs(name), {"row": Row, **MAKERS}[name]()
    params = random_params(net, *inputs)
    return inputs, params, computed(params, net, inputs, True)

  return plain


@pytest.mark.parametrize(
  ("name", "remat", "scan"),
  [
    *itertools.product(["row"], REMAT, [False, True]),
    *[("unet", "full", True), ("efficient", "products", True)],
    ("t5", "none", True),
  ],
)
def test_results_are_the_same(plain, name, remat, scan):
  """Of a row the last h and every unit's y; and all gradients."""
  inputs, params, expected = plain(name)
  net = {"row": Row, **MAKERS}[name](remat=remat, scan=scan)
  assert_same(computed(params, net, inputs), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_parameters_keep_their_names_and_shapes(name):
  inputs = make_inputs(name)
  one, two = MAKERS[name](), MAKERS[name]("full", scan=True)
  assert shapes(one, inputs) == shapes(two, inputs)


@pytest.mark.parametrize("name", ["unet", "efficient"])
def test_text_is_kept_once_per_prompt(plain, name):
  """By a scanned net as by one that is not; it then needs no tokens."""
  (z, time, cond), params, (_, expected) = plain(name)
  net = MAKERS[name]("full", scan=True)
  keeping = jit(functools.partial(net.apply, mutable=["text"]))
  out, text = keeping({"params": params}, z, time, cond)
  assert len(jax.tree.leaves(text)) > 4
  nothing = cond.text.replace(tokens=np.full_like(cond.text.tokens, np.nan))
  blind = jit(net.apply)(
    {"params": params, **text}, z, time, cond.replace(text=nothing)
  )
  assert_same((out, blind), (expected, expected))


@pytest.mark.parametrize("name", MAKERS)
def test_bfloat16_is_the_same_to_the_bit(plain, name):
  """Against units that are called as they are, which cast for themselves."""
  inputs, params, _ = plain(name)
  net = MAKERS[name]("full", scan=True, dtype=jnp.bfloat16)
  expected, _ = jit(functools.partial(net.apply, mutable=["text"]))(
    {"params": params}, *inputs
  )
  found = jit(net.apply)({"params": params}, *inputs)
  np.testing.assert_array_equal(found, expected)


def test_bfloat16_kernels_are_cast_before_the_loop():
  """Half as much to send to others; norms stay as they are."""
  jaxpr = program(Row(dtype=jnp.bfloat16, scan=True), make_inputs("row"))
  (loop,) = (e for e in jaxpr.eqns if e.primitive.name == "scan")
  given = {(v.aval.shape, v.aval.dtype.name) for v in loop.invars}
  assert ((2, 3, 3, 4, 4), "bfloat16") in given  # the convolution's kernel
  assert ((2, 4), "float32") in given  # a norm's scale
  assert not any(dtype == "float32" and len(s) > 4 for s, dtype in given)


# --- What they do change.


@pytest.mark.parametrize(
  ("widths", "bare", "lengths"),
  [
    ((4, 4, 4, 4), (), [4]),
    ((4, 4, 4, 4), (1,), [2]),  # None is not a module
    ((4, 8, 8, 8), (), [2]),  # the first takes 4 channels
    ((8, 4, 8, 4), (), []),
  ],
)
def test_neighbours_of_the_same_kind_are_one_loop(widths, bare, lengths):
  inputs = make_inputs("row")
  assert loops(Row(widths, bare, scan=True), inputs) == lengths
  assert loops(Row(widths, bare), inputs) == []
  # A loop could not return what it keeps.
  assert loops(Row(widths, bare, scan=True), inputs, mutable=["text"]) == []


def test_an_x_of_another_shape_is_no_neighbour():
  h, xs = make_inputs("row")
  xs[2] = np.zeros(5, np.float32)
  assert loops(Row((4,) * 4, (), scan=True), (h, xs)) == [2]


def test_equal_blocks_of_the_nets_are_loops():
  """Levels 8 and 16 wide: skips make some blocks' first kernels larger."""
  net = make_unet(mult=(1, 2), blocks=3, scan=True)
  # Down 3, sample; 1 + 2; middle 1 + 1; up 3 + 1, sample; 1 + 3.
  assert loops(net, make_inputs()) == [3, 2, 3, 3]
  assert loops(make_efficient(scan=True), make_inputs()) == [3, 3]
  assert loops(make_t5(scan=True), make_inputs("t5")) == [3]


def attend(keys, width=8):
  """Operations of attention's two products, its heads' widths joined."""
  return 2 * 2 * BATCH * PIXELS * keys * width


@pytest.mark.parametrize("scan", [False, True])
def test_what_each_policy_computes_again(scan):
  """The products of pixels with pixels, or all that is not the end of it."""
  inputs = make_inputs("row")
  none, products, full = (
    flops(Row(remat=remat, scan=scan), inputs) for remat in REMAT
  )
  assert products - none == 2 * attend(PIXELS)
  convs, dense = 9 * 4 * (4 + 4 + 4 + 8), 2 * 3 * 4 * 8
  assert full - products == 2 * BATCH * PIXELS * (convs + dense)


@pytest.mark.parametrize(
  ("name", "width", "attentions", "convs", "blocks"),
  [
    # Of 5 blocks all first and, with attention after them, second kernels,
    # which the sum at the end does not need; and those of the two skips.
    ("unet", 8, 4, 9 * (3 + 2 * 2) + 9 * 4 + 2 * 2, 5),
    # Of 6 blocks the first ones: attention is apart from them.
    ("efficient", 16, 2, 9 * 6, 6),
  ],
)
def test_all_blocks_have_the_policy(name, width, attentions, convs, blocks):
  none, products, full = (
    flops(MAKERS[name](remat, scan=True), make_inputs()) for remat in REMAT
  )
  assert products - none == attentions * attend(PIXELS + LENGTH, width)
  dense = attentions * 8 * width * (3 * PIXELS + 2 * LENGTH)
  dense += blocks * 32 * 16  # scale and shift, of an embedding of 32
  assert full - products == 2 * BATCH * (64 * PIXELS * convs + dense)


def test_levels_have_policies_of_their_own():
  """Blocks of level 0: 1, the sampling, 2; of level 1: 1, 2, 2, sampling.

  Level 1 has four attentions besides, whose maps no policy keeps.
  """
  for remat, blocks in (("full", "none"), 4), (("none", "products"), 6):
    net = make_unet(remat, mult=(1, 2))
    assert str(program(net, make_inputs())).count("remat2[") == blocks + 4


# --- What is refused.


def test_policies_that_are_none_are_refused():
  some = "remat is 'some', expected one of 'none', 'products', 'full'"
  few = "remat has 1 policies, expected one for each of the 2 levels"
  for net, message in (
    (make_unet("some"), some),
    (make_efficient("some"), some),
    (make_unet(("full",), (1, 2)), few),
  ):
    with pytest.raises(ValueError, match=f"^{message}\n"):
      shapes(net, make_inputs())
