"""Both U-Nets: what each output depends on, and what it must not.

Most tests look at one batch whose examples differ from the first, "base", in
one thing each, so that one compiled program answers them all.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.nets.efficient_unet import (
  BlockSpec,
  EfficientUNet,
  ResNetBlock,
)
from imagen_jax.nets.unet import UNet
from imagen_jax.types import Conditioning, TextEmbedding

ROWS = (
  "base", "padding", "token", "null", "masked",
  "aug_level", "lowres", "time", "z",
)  # fmt: skip
SIDE, LENGTH, DIM = 8, 4, 6


def make_unet(
  mult=(1, 2), cross=(4,), pooling="attention", attn=(4,), **fields
):
  return UNet(
    image_size=SIDE,
    embed_dim=8,
    channel_mult=mult,
    num_res_blocks=1,
    attn_resolutions=attn,
    text_cross_attn_res=cross,
    per_head_channels=8,
    feature_pooling_type=pooling,
    text_width=10,
    norm_groups=4,
    **fields,
  )


OUTER = BlockSpec(4, num_res_blocks=1)
INNER = BlockSpec(
  8, num_res_blocks=1, text_cross_attention=True, num_attention_heads=2
)


def make_efficient(blocks=(OUTER, INNER), pooling="attention", **fields):
  return EfficientUNet(
    blocks=blocks,
    embed_dim=8,
    feature_pooling_type=pooling,
    text_width=10,
    norm_groups=4,
    **fields,
  )


NETS = {
  "unet": make_unet(),
  "unet, attention pooling": make_unet((1,), (), attn=()),
  "unet, mean pooling": make_unet((1,), (), "mean", attn=()),
  "efficient": make_efficient(),  # its text attention is to text alone
  "efficient, attention pooling": make_efficient((OUTER,)),
  "efficient, mean pooling": make_efficient((OUTER,), "mean"),
}
BOTH = ("unet", "efficient")


def make_inputs(side=SIDE):
  """(z, time, cond): ROWS of alike examples, but for what each is named."""
  rng, row = np.random.default_rng(0), ROWS.index
  repeat = lambda *shape: np.repeat(
    rng.normal(size=(1, *shape)).astype(np.float32), len(ROWS), axis=0
  )
  z, lowres = repeat(side, side, 3), repeat(side // 2, side // 2, 3)
  tokens, mask = repeat(LENGTH, DIM), np.ones((len(ROWS), LENGTH), bool)
  time, aug_level = np.full(len(ROWS), 300.0), np.full(len(ROWS), 0.1)
  mask[:, 2] = mask[:, 3] = False
  tokens[row("padding"), 2:] += rng.normal(size=(2, DIM))
  tokens[row("token"), 1] += rng.normal(size=DIM)
  tokens[row("null")], mask[row("null"), 1] = 0, False
  mask[row("masked")] = False
  aug_level[row("aug_level")] = 0.2
  lowres[row("lowres"), 0, 0, 0] += 1
  time[row("time")] = 310
  z[row("z"), -1, -1, -1] += 1
  text = TextEmbedding(tokens, mask)
  return z, time, Conditioning(text, lowres, aug_level)


def change(out, row):
  """How far an example's output is from that of the base example."""
  return np.abs(out[ROWS.index(row)] - out[ROWS.index("base")]).max()


class Run:
  """A net with its parameters; its output on make_inputs(), and its text."""

  def __init__(self, net, random_params):
    self.net = net
    self.params = random_params(net, *make_inputs())
    self.keeping_text = jax.jit(partial(net.apply, mutable=("text",)))
    self.apply = jax.jit(net.apply)
    self.out, self.text = self.keeping_text(
      {"params": self.params}, *make_inputs()
    )


@pytest.fixture(scope="module")
def runs(random_params):
  return {name: Run(net, random_params) for name, net in NETS.items()}


@pytest.mark.parametrize("name", NETS)
def test_what_the_output_depends_on(runs, name):
  out = runs[name].out
  assert out.shape == (len(ROWS), SIDE, SIDE, 3)
  assert out.dtype == jnp.float32
  assert jnp.isfinite(out).all()
  assert change(out, "padding") < 1e-5
  for row in ("token", "null", "masked", "aug_level", "lowres", "time", "z"):
    assert change(out, row) > 1e-3, row


@pytest.mark.parametrize("name", NETS)
def test_an_example_does_not_depend_on_its_batch(runs, name):
  run = runs[name]
  inputs = jax.tree.map(np.copy, make_inputs())
  for leaf in jax.tree.leaves(inputs):
    leaf[1:] = leaf[1:][::-1] if leaf.dtype == bool else 3 - leaf[1:]
  out, _ = run.keeping_text({"params": run.params}, *inputs)
  np.testing.assert_allclose(out[0], run.out[0], atol=1e-5)
  assert np.abs(out[1:] - run.out[1:]).max(axis=(1, 2, 3)).min() > 1e-2


@pytest.mark.parametrize("name", BOTH)
def test_more_padding_changes_nothing(runs, name):
  """Nor does it that this time the text is not kept."""
  run, (z, time, cond) = runs[name], make_inputs()
  more = ((0, 0), (0, 3))
  text = TextEmbedding(
    np.pad(cond.text.tokens, (*more, (0, 0)), constant_values=9.0),
    np.pad(cond.text.mask, more),
  )
  out = run.apply({"params": run.params}, z, time, cond.replace(text=text))
  np.testing.assert_allclose(out, run.out, atol=1e-5)


@pytest.mark.parametrize("name", BOTH)
def test_kept_text_is_all_that_a_net_needs_of_the_tokens(runs, name):
  run, (z, time, cond) = runs[name], make_inputs()
  tokens = np.full_like(cond.text.tokens, np.nan)
  blind = cond.replace(text=cond.text.replace(tokens=tokens))
  out = run.apply({"params": run.params, **run.text}, z, time, blind)
  np.testing.assert_allclose(out, run.out, atol=1e-5)


@pytest.mark.parametrize(
  "net", [make_unet((1,), (SIDE,), attn=()), make_efficient((INNER,))]
)
def test_gradients_are_finite(net, random_params):
  """Where rows of attention to text alone have not a single real token."""
  inputs = make_inputs()
  params = random_params(net, *inputs)
  loss = lambda params: (net.apply({"params": params}, *inputs) ** 2).sum()
  gradient = jax.jit(jax.grad(loss))(params)
  for path, leaf in jax.tree.leaves_with_path(gradient):
    assert jnp.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", BOTH)
def test_the_output_begins_at_zero(runs, name):
  """The head's initial parameters, beside whatever others."""
  run, head = runs[name], {"unet": "conv_out", "efficient": "dense_out"}[name]
  init = lambda key: run.net.init(key, *make_inputs())["params"][head]
  params = {**run.params, head: jax.jit(init)(jax.random.key(0))}
  out, _ = run.keeping_text({"params": params}, *make_inputs())
  np.testing.assert_array_equal(out, 0)


def test_adm_blocks_begin_as_the_identity(runs):
  """Zero kernels end each branch of the base U-Net, as in ADM's own code."""
  net = runs["unet"].net

  def init(key):
    params = net.init(key, *make_inputs())["params"]
    attention, block = params["mid_attn"], params["mid_res_0"]
    return [attention["out"]["kernel"], block["conv_1"]["kernel"]]

  for kernel in jax.jit(init)(jax.random.key(0)):
    np.testing.assert_array_equal(kernel, 0)


@pytest.mark.parametrize("name", BOTH)
def test_bfloat16_is_close_to_float32(runs, name):
  run, inputs = runs[name], make_inputs()
  net = {"unet": make_unet, "efficient": make_efficient}[name](
    dtype=jnp.bfloat16
  )
  init = jax.eval_shape(net.init, jax.random.key(0), *inputs)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(init)} == {"float32"}
  out = jax.jit(net.apply)({"params": run.params}, *inputs)
  assert out.dtype == jnp.float32
  error = np.sqrt(np.mean((out - run.out) ** 2) / np.mean(run.out**2))
  assert 1e-4 < error < 0.05
  assert (out.astype(jnp.bfloat16) != out).mean() > 0.9  # so is the head


@pytest.mark.parametrize("name", BOTH)
def test_what_bfloat16_must_not_touch(runs, name, dtypes_into):
  """Norms, their scale and shift, and softmax; products are what it is for."""
  net, inputs = runs[name].net.clone(dtype=jnp.bfloat16), make_inputs()
  variables = {"params": runs[name].params}
  into = lambda *names: dtypes_into(net.apply, names, variables, *inputs)
  assert into("exp", "rsqrt", "reduce_max", "reduce_sum") == {"float32"}
  assert into("split") == {"float32"}
  assert into("dot_general", "conv_general_dilated") == {"float32", "bfloat16"}


@pytest.mark.parametrize("name", BOTH)
def test_any_divisible_size_will_do(runs, name):
  """One set of parameters, as training on crops needs."""
  run, (_, time, cond) = runs[name], make_inputs()
  init = lambda side: jax.eval_shape(
    run.net.init, jax.random.key(0), *make_inputs(side)
  )["params"]
  assert run.net.stride == {"unet": 2, "efficient": 4}[name]
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(init(16)) == shapes(init(8)) == shapes(run.params)
  z = np.zeros((len(ROWS), 16, 24, 3), np.float32)
  lowres = np.zeros((len(ROWS), 4, 6, 3), np.float32)
  out = jax.eval_shape(
    run.net.apply, {"params": run.params}, z, time, cond.replace(lowres=lowres)
  )
  assert out.shape == z.shape


# --- The Efficient U-Net's own.


def test_the_residual_sum_is_scaled_to_keep_the_variance(random_params):
  """Fig. A.27, App. B.1: (skip + branch) / sqrt(2)."""
  block = ResNetBlock(8, (3, 3), groups=4)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 4, 4, 8)).astype(np.float32)
  emb = rng.normal(size=(2, 6)).astype(np.float32)
  params = random_params(block, x, emb)
  apply = jax.jit(
    lambda **parts: block.apply({"params": params | parts}, x, emb)
  )
  skip = x @ params["skip"]["kernel"][0, 0] + params["skip"]["bias"]
  constant = {"kernel": 0 * params["conv_1"]["kernel"], "bias": np.ones(8)}
  np.testing.assert_allclose(
    apply(conv_1=constant), (skip + 1) / 2**0.5, atol=1e-5
  )
  none = jax.tree.map(np.zeros_like, params["skip"])
  branch = apply(skip=none) * 2**0.5
  np.testing.assert_allclose(apply(), (skip + branch) / 2**0.5, atol=1e-5)
  other = block.apply({"params": params}, x, emb + 1)
  assert np.abs(other - apply()).max() > 0.01


def test_skips_link_like_sizes_and_not_the_innermost():
  """Channels into each block: of the one before, and of its DBlock's peer."""
  blocks = tuple(BlockSpec(c, num_res_blocks=1) for c in (4, 8, 16))
  net = EfficientUNet(blocks=blocks, embed_dim=8, norm_groups=4)
  z, time, cond = make_inputs()
  params = jax.eval_shape(
    net.init, jax.random.key(0), z, time, cond.replace(text=None)
  )["params"]
  into = lambda block: params[block]["body"]["res_0"]["skip"]["kernel"].shape[2]
  assert [into(f"dblock_{i}") for i in range(3)] == [4, 8, 16]
  assert [into(f"ublock_{i}") for i in range(3)] == [8 + 4, 16 + 8, 16]
  assert params["dense_out"]["kernel"].shape == (4, 3)
