"""Where parameters lie, by the rules: of made-up trees and of the real nets.

By shapes alone but for the last section; the mesh is of 8 fake devices.
"""

import functools
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from imagen_jax import build
from imagen_jax.nets.layers import pin_batch
from imagen_jax.parallel.mesh import (
  MeshShape,
  batch_sharding,
  make_mesh,
  replicated,
)
from imagen_jax.parallel.sharding import (
  REPLICATED,
  RULES,
  Placement,
  replicated_bytes,
)
from imagen_jax.training.step import init_state, place_state

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def on(data=1, fsdp=1, tensor=1):
  return make_mesh(MeshShape(data, fsdp, tensor))


def shape(*sizes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(sizes, dtype)


def specs(tree, mesh, rules=RULES):
  """The partition of every leaf."""
  shardings = Placement(mesh, rules).params(tree)
  assert all(leaf.mesh == mesh for leaf in jax.tree.leaves(shardings))
  return jax.tree.map(lambda sharding: sharding.spec, shardings)


# --- The rules.


def test_the_first_match_counts():
  rules = (("b/kernel", REPLICATED), ("kernel", ("tensor",)), ("", ()))
  tree = {
    name: {"kernel": shape(8, 2), "x": shape(8, 2)} for name in ("a", "b")
  }
  assert specs(tree, on(fsdp=4, tensor=2), rules) == {
    "a": {"kernel": P("tensor"), "x": P("fsdp")},
    "b": {"kernel": P(), "x": P("fsdp")},
  }


@pytest.mark.parametrize(
  ("tree", "name"),
  [({"a": {"table": shape(8)}}, "a/table"), ({"kernels": shape(8)}, "kernels")],
)
def test_a_parameter_without_a_rule_is_refused(tree, name):
  message = f"^no sharding rule matches parameter {name}$"
  with pytest.raises(ValueError, match=message):
    specs({"conv": {"kernel": shape(8), "bias": shape(8)}, **tree}, on(fsdp=8))


@pytest.mark.parametrize(
  ("axes", "sizes", "expected"),
  [
    ((), (8, 16, 4), P(None, "fsdp")),
    ((), (16, 8, 4), P("fsdp")),
    ((), (3, 3, 8, 16), P(None, None, "fsdp")),  # the last is of the lanes
    ((), (9, 4), P(None, "fsdp")),  # there is no other that divides
    ((), (8,), P("fsdp")),
    ((), (9, 7), P()),
    ((), (), P()),
    (("tensor",), (8, 4), P("tensor", "fsdp")),  # the largest is not free
    (("tensor",), (8, 3), P("tensor")),
    (("tensor",), (7, 4), P(None, "fsdp")),  # tensor does not divide it
    (("tensor",), (4, 7), P("tensor")),
    (("fsdp",), (4, 8), P("fsdp")),  # and not once more
    (("fsdp", "tensor"), (4, 8), P("fsdp", "tensor")),
    (REPLICATED, (8, 8), P()),
  ],
)
def test_axes_of_a_shape(axes, sizes, expected):
  rules = (("", axes),)
  assert specs({"a": shape(*sizes)}, on(2, 2, 2), rules)["a"] == expected


def test_axes_of_one_device_are_left_out():
  tree = {"a": shape(8, 8)}
  rules = (("a", ("tensor",)),)
  assert specs(tree, on(data=8), rules)["a"] == P()
  assert specs(tree, on(fsdp=8), rules)["a"] == P("fsdp")
  assert specs(tree, on(tensor=8), rules)["a"] == P("tensor")


# --- Parameters of the real nets.


@functools.cache
def shapes_of(name):
  """(net, text): weights of a config in configs/, of which none is made."""
  config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
  text = build.text(config.text)
  if "stage" not in config:
    return {}, text.shapes()
  stage, key = build.stage(config.stage), jax.random.key(0)
  net = jax.eval_shape(lambda: build.init_net(stage, text, key))
  return net, text.shapes()


def test_tensor_splits_heads_and_hidden_features():
  net, text = shapes_of("base_64")
  found = specs(net, on(tensor=8)), specs(text, on(tensor=8))
  attention = found[0]["down_1_attn_0"]
  for name in ("query", "key", "value", "text_key", "text_value"):
    assert attention[name]["kernel"] == P(None, "tensor"), name  # of heads
  assert attention["out"]["kernel"] == P("tensor")
  block = found[0]["down_1_res_1"]
  assert block["conv_0"]["kernel"] == P(None, None, None, "tensor")
  assert block["conv_1"]["kernel"] == P(None, None, "tensor")
  assert block["emb_proj"]["kernel"] == P(None, "tensor")
  assert found[0]["up_1_res_1"]["skip"]["kernel"] == P()
  time = found[0]["combine_embs"]["time_mlp"]
  assert time["dense_0"]["kernel"] == P(None, "tensor")
  assert time["dense_1"]["kernel"] == P("tensor")
  assert block["norm_0"]["scale"] == block["conv_0"]["bias"] == P()
  layer = found[1]["encoder"]["layers_3"]
  for name in ("query", "key", "value"):
    assert layer["attention"][name]["kernel"] == P(None, "tensor"), name
  assert layer["attention"]["out"]["kernel"] == P("tensor")
  assert layer["mlp"]["wi_0"]["kernel"] == P(None, "tensor")
  assert layer["mlp"]["wi_1"]["kernel"] == P(None, "tensor")
  assert layer["mlp"]["wo"]["kernel"] == P("tensor")
  assert found[1]["token_embedder"]["embedding"] == P("tensor")
  assert found[1]["encoder"]["relpos_bias"]["rel_embedding"] == P()


def test_fsdp_takes_what_tensor_leaves():
  net, text = shapes_of("base_64")
  net, text = specs(net, on(fsdp=4, tensor=2)), specs(text, on(1, 4, 2))
  attention = net["down_1_attn_0"]
  # Channels, heads, features of a head; and the same backwards.
  assert attention["query"]["kernel"] == P("fsdp", "tensor")
  assert attention["out"]["kernel"] == P("tensor", "fsdp")
  conv = net["down_1_res_1"]["conv_0"]["kernel"]
  assert conv == P(None, None, "fsdp", "tensor")
  mlp = text["encoder"]["layers_3"]["mlp"]
  assert mlp["wi_0"]["kernel"] == P("fsdp", "tensor")
  assert mlp["wo"]["kernel"] == P("tensor", "fsdp")
  assert text["token_embedder"]["embedding"] == P("tensor", "fsdp")


def whole(tree, shardings):
  """Names of arrays above 1 MiB that are not in 8 equal parts."""
  return [
    jax.tree_util.keystr(path)
    for (path, leaf), sharding in zip(
      jax.tree.leaves_with_path(tree), jax.tree.leaves(shardings), strict=True
    )
    if leaf.size * leaf.dtype.itemsize > 2**20
    and 8 * math.prod(sharding.shard_shape(leaf.shape)) != leaf.size
  ]


@pytest.mark.parametrize("name", ["base_64", "sr256", "sr1024", "t5_xxl"])
def test_all_above_a_mebibyte_is_split_over_fsdp(name):
  placement = Placement(on(fsdp=8))
  for tree in shapes_of(name):
    assert whole(tree, placement.params(tree)) == []
  # And the planted error is found.
  rules = Placement(placement.mesh, (("", REPLICATED),))
  assert len(whole(tree, rules.params(tree))) > 100


def test_over_tensor_all_but_some_convolutions_is_split():
  for name in ("base_64", "sr256", "t5_xxl"):
    for tree in shapes_of(name):
      found = whole(tree, Placement(on(tensor=8)).params(tree))
      assert all("'skip'" in path or "'conv'" in path for path in found)


@pytest.mark.parametrize("name", ["base_64", "sr256"])
def test_so_is_the_state_of_the_optimizer(name):
  config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
  optimizer = build.optimizer(config.optimizer)
  net, _ = shapes_of(name)
  state = jax.eval_shape(lambda net: init_state(net, optimizer), net)
  places = place_state(state, optimizer, Placement(on(fsdp=8)))
  assert whole(state, places) == []


@pytest.mark.parametrize("axes", [(None, "tensor"), ("tensor",)])
def test_gradients_of_layers_in_a_row(axes):
  """Of the same layout, which XLA gets wrong with rows in another order."""
  made = on(2, 2, 2)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 8)).astype(np.float32)
  tree = [rng.normal(size=(8, 8)).astype(np.float32) / 3 for _ in range(2)]

  def loss(tree, x):
    for kernel in tree:
      x = pin_batch(jnp.tanh(pin_batch(x) @ kernel))
    return (x**2 * np.arange(4)[:, None]).mean()

  expected = jax.jit(jax.value_and_grad(loss))(tree, x)
  places = Placement(made, (("", axes),)).params(tree)
  spread = batch_sharding(made, 4)
  with jax.set_mesh(made):
    found = jax.jit(
      jax.value_and_grad(loss), out_shardings=(replicated(made), places)
    )(jax.device_put(tree, places), jax.device_put(x, spread))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
    found,
    expected,
  )


# --- Arrays.


def test_put_gives_every_device_its_part():
  tree = {"kernel": np.arange(32.0).reshape(4, 8), "bias": np.arange(3.0)}
  out = Placement(on(2, 2, 2), (("k", ("tensor",)), ("b", ()))).put(tree)
  assert jax.tree.map(lambda leaf: leaf.sharding.spec, out) == {
    "kernel": P("tensor", "fsdp"),
    "bias": P(),
  }
  for name, part in (("kernel", (2, 4)), ("bias", (3,))):
    np.testing.assert_array_equal(out[name], tree[name])
    assert {s.data.shape for s in out[name].addressable_shards} == {part}


def test_replicated_bytes():
  """Of what is whole everywhere and of over a mebibyte, or given as such."""
  mesh = on(fsdp=8)
  leaf = lambda sizes, dtype, *axes: jax.ShapeDtypeStruct(
    sizes, dtype, sharding=jax.sharding.NamedSharding(mesh, P(*axes))
  )
  leaves = [
    leaf((2**18,), jnp.float32),  # a mebibyte, not above it
    leaf((2**18 + 1,), jnp.float32),
    leaf((2**19 + 1,), jnp.bfloat16),
    leaf((2**20,), jnp.float32, "fsdp"),
  ]
  above = 4 * (2**18 + 1) + 2 * (2**19 + 1)
  assert replicated_bytes(leaves) == above
  assert replicated_bytes(leaves, least=0) == above + 2**20
