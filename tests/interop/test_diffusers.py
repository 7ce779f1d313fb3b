"""DeepFloyd IF's nets in diffusers' layout: read, refused, written."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from imagen_jax.interop import diffusers
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.parallel.sharding import Placement
from imagen_jax.types import Conditioning, TextEmbedding

HERE = pathlib.Path(__file__).parent
FIXTURE = HERE.parent / "oracles" / "deepfloyd_if.safetensors"
SCRIPT = runpy.run_path(str(HERE.parent / "oracles" / "make_if_fixture.py"))
CONFIGS = SCRIPT["CONFIGS"]
PUBLISHED = sorted(path.stem for path in HERE.glob("deepfloyd_if/*.json"))


def nhwc(x):
  return jnp.moveaxis(x, 1, -1)


def conditioning(inputs) -> Conditioning:
  """Our conditioning of a fixture's inputs, the low-res image left out."""
  text = inputs["text"]
  text = TextEmbedding(text, jnp.ones(text.shape[:2], bool))
  if "aug" not in inputs:
    return Conditioning(text)
  return Conditioning(text, nhwc(inputs["z"][:, 3:]), inputs["aug"] / 1000)


def shapes(net: UNet, text_dim: int, second: bool):
  """The net's parameters as shapes."""
  side = net.stride
  text = TextEmbedding(jnp.zeros((1, 2, text_dim)), jnp.ones((1, 2), bool))
  cond = Conditioning(text)
  if second:
    cond = cond.replace(
      lowres=jnp.zeros((1, side, side, 3)), aug_level=jnp.zeros(1)
    )
  init = lambda: net.init(
    jax.random.key(0), jnp.zeros((1, side, side, 3)), jnp.zeros(1), cond
  )
  return jax.eval_shape(init)["params"]


def write(folder, config, state):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  path = folder / "diffusion_pytorch_model.safetensors"
  safetensors.numpy.save_file(state, path, {"format": "pt"})
  return folder


@pytest.fixture(scope="module")
def nets():
  """{name: (net, shapes of its parameters)} of the fixture."""
  nets = {}
  for name, config in CONFIGS.items():
    net = diffusers.unet(config)
    second = config["in_channels"] == 6
    nets[name] = net, shapes(net, config["encoder_hid_dim"], second)
  return nets


@pytest.fixture(scope="module")
def states(nets):
  """{name: its tensors by diffusers' names} of the fixture."""
  return {
    name: {
      key: SCRIPT["weight"](key, shape)
      for key, shape in diffusers.diffusers_shapes(like).items()
    }
    for name, (_, like) in nets.items()
  }


@pytest.fixture
def folder(tmp_path, states):
  """folder(name): a net of the fixture as diffusers stores it."""
  return lambda name: write(tmp_path / name, CONFIGS[name], states[name])


# --- Reading.


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_of_diffusers(name, nets, folder):
  """Of the weights that make_if_fixture.py gave to UNet2DConditionModel."""
  net, like = nets[name]
  fixture = safetensors.numpy.load_file(FIXTURE)
  inputs = {
    key.removeprefix(f"{name}/"): value
    for key, value in fixture.items()
    if key.startswith(f"{name}/")
  }
  params = {"params": diffusers.load(folder(name), like)}
  with jax.default_matmul_precision("highest"):
    z = nhwc(inputs["z"][:, :3])
    out = jax.jit(net.apply)(params, z, inputs["time"], conditioning(inputs))
  expected = nhwc(inputs["output"])
  assert np.abs(expected).max() > 0.5
  np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_nets_are_covered_whole(name):
  """Names and shapes of the real nets, of which no weights are needed."""
  manifest = json.loads((HERE / f"deepfloyd_if/{name}.json").read_text())
  config = manifest["config"] | {"_class_name": "UNet2DConditionModel"}
  net = diffusers.unet(config, dtype=jnp.bfloat16)
  like = shapes(net, config["encoder_hid_dim"], "class_embed_type" in config)
  expected = {key: tuple(shape) for key, shape in manifest["params"].items()}
  assert diffusers.diffusers_shapes(like) == expected


def test_parts_go_to_their_devices(nets, folder):
  """What a mesh's devices hold is what the whole has there."""
  _, like = nets["if_1"]
  whole = diffusers.load(folder("if_1"), like)
  mesh = make_mesh(MeshShape(data=1, fsdp=2, tensor=2), jax.devices()[:4])
  placed = diffusers.load(folder("if_1"), like, Placement(mesh))
  jax.tree.map(np.testing.assert_array_equal, whole, placed)
  query = placed["down_1_attn_0"]["query"]["kernel"]
  assert query.addressable_shards[0].data.shape != query.shape


def test_half_precision_under_its_own_name(nets, states, tmp_path):
  _, like = nets["if_1"]
  path = tmp_path / "diffusion_pytorch_model.fp16.safetensors"
  state = {n: x.astype(np.float16) for n, x in states["if_1"].items()}
  safetensors.numpy.save_file(state, path)
  like = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), like
  )
  params = diffusers.load(tmp_path, like)
  kernel = np.asarray(state["conv_in.weight"], jnp.bfloat16)
  np.testing.assert_array_equal(
    params["conv_in"]["kernel"], kernel.transpose(2, 3, 1, 0)
  )


# --- Refusing.


def test_all_wrong_tensors_are_named_at_once(nets, states, tmp_path):
  state = dict(states["if_1"])
  del state["conv_in.bias"]
  state["conv_out.weight"] = state["conv_out.weight"][:3]
  state["down_blocks.7.resnets.0.norm1.weight"] = np.ones(3, np.float32)
  folder = write(tmp_path, CONFIGS["if_1"], state)
  with pytest.raises(ValueError) as error:
    diffusers.load(folder, nets["if_1"][1])
  for part in ("lack conv_in.bias", "down_blocks.7", "float32[3,16,3,3]"):
    assert part in str(error.value)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("_class_name", "AutoencoderKL"),
    ("_class_name", None),
    ("act_fn", "mish"),
    ("addition_embed_type", None),
    ("block_out_channels", [16, 24, 48]),
    ("block_out_channels", 16),
    ("cross_attention_norm", "layer_norm"),
    ("down_block_types", ["DownBlock2D"] * 3),
    ("layers_per_block", [2, 2]),
    ("mid_block_scale_factor", 2.0),
    ("only_cross_attention", [True, False, False]),
    ("time_embedding_act_fn", "gelu"),
    ("sample_size", None),
    ("up_block_types", ["UpBlock2D"] * 3),
    ("norm_num_groups", 7),
    ("attention_head_dim", 7),
    ("addition_embed_type_num_heads", 7),
    ("sample_size", 66),
    ("block_out_channels", [16] * 100_000),
    ("layers_per_block", 10**7),
    ("layers_per_block", [2, 10**7, 2]),
  ],
)
def test_another_config_is_refused(key, value):
  with pytest.raises(ValueError, match=f"config.json has .*{key[:4]}") as found:
    diffusers.unet(CONFIGS["if_1"] | {key: value})
  assert len(str(found.value)) < 400


# What JSON may hold in place of a number, or of anything.
ODD = (
  0, -1, 10**7, 2**62, 10**400, 1.5, 0.0, -0.5, float("nan"), float("inf"),
  1e-320, True, False, "2", "\x1b[2J" * 10**5, [], [0, 0, 0], [True] * 3, {},
  [[2]] * 3, [None] * 3, ["a"] * 3, {"a": 1}, None,
)  # fmt: skip
KEYS = sorted({key for config in CONFIGS.values() for key in config})


@pytest.mark.parametrize("key", KEYS)
def test_odd_values_are_refused_or_harmless(key):
  """Those of a key that is not read, and null for a default, are harmless."""
  scales = ("resnet_out_scale_factor", "mid_block_scale_factor")
  for value in ODD:
    keys = scales if key in scales else (key,)
    try:
      net = diffusers.unet(CONFIGS["if_2_l"] | dict.fromkeys(keys, value))
    except ValueError as error:
      assert str(error).startswith("config.json has "), (key, value)
      assert len(str(error)) < 400 and str(error).isprintable()
    else:
      assert max(net.blocks) < 20 and 0 < net.residual_scale < 1e4
      assert type(net.image_size) is int and net.image_size < 10**6


def test_a_config_that_cannot_be_read(tmp_path):
  with pytest.raises(ValueError, match=r"config\.json cannot be read"):
    diffusers.read_config(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match="is not JSON"):
    diffusers.read_config(tmp_path)
  (tmp_path / "config.json").write_text('{"a": ' * 99_999 + "}" * 99_999)
  with pytest.raises(ValueError, match="is nested too deeply"):
    diffusers.read_config(tmp_path)
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(ValueError, match="has no settings"):
    diffusers.read_config(tmp_path)


def test_a_pickle_is_not_opened(nets, tmp_path):
  (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n.")
  with pytest.raises(ValueError, match="are pickles .*expected diffusion_py"):
    diffusers.load(tmp_path, nets["if_1"][1])


def test_a_truncated_file_is_named(nets, folder):
  path = folder("if_1") / "diffusion_pytorch_model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match=f"{path} are damaged"):
    diffusers.load(path.parent, nets["if_1"][1])


# --- Writing.


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_what_was_read(name, nets, states, folder, tmp_path):
  net, like = nets[name]
  params = diffusers.load(folder(name), like)
  diffusers.save(tmp_path / "back", net, params)
  path = tmp_path / "back" / "diffusion_pytorch_model.safetensors"
  back = safetensors.numpy.load_file(path)
  assert back.keys() == states[name].keys()
  for key, value in states[name].items():
    np.testing.assert_array_equal(back[key], value)
  written = diffusers.read_config(path.parent)
  again = diffusers.unet(written)
  assert again.residual_scale == pytest.approx(net.residual_scale, rel=1e-12)
  assert again.clone(residual_scale=0.0) == net.clone(residual_scale=0.0)
