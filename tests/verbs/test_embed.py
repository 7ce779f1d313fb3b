"""The verb embed, and training with what it stores instead of an encoder."""

import dataclasses
import hashlib
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import build, embed, imagen
from imagen_jax.aot import programs
from imagen_jax.build.configs import resolve
from imagen_jax.data import embeddings
from imagen_jax.interop import published
from imagen_jax.parallel import mesh
from imagen_jax.text import buckets
from imagen_jax.training import setup, summary
from imagen_jax.training.batches import open_batches
from imagen_jax.training.step import batch_loss, encode_text

ROOT = pathlib.Path(__file__).parents[2]


def arguments(here, output, *more):
  return [f"--config={here}/tiny.py", f"--output={output}", *more]


@pytest.fixture(scope="module")
def made(here, tmp_path_factory):
  """made(*flags): a folder of embeddings, made once, in this process."""
  folders = {}

  def make(*more):
    if more not in folders:
      folder = tmp_path_factory.mktemp("embeddings") / "of"
      embed.main(arguments(here, folder, "--per_shard=30", *more))
      folders[more] = folder
    return folders[more]

  return make


def config_of(here, **changes):
  return resolve(str(here / "tiny.py"), changes)


def stored(here, folder, **changes):
  return config_of(here, **{"data.embeddings": str(folder), **changes})


def contents(folder):
  """The checksums of a folder's files, hidden ones too."""
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.iterdir())
  }


def captions(here):
  sources = embed.open_records(config_of(here))
  return [record["caption"] for _, of in sources for record in of]


@pytest.mark.parametrize(
  ("storage", "error"), [("bfloat16", 2**-8), ("int8", 0.02)]
)
def test_captions_have_what_the_encoder_makes_of_them(
  here, made, capfd, storage, error
):
  folder = made(f"--storage={storage}")
  text = build.text(config_of(here).text)
  encode = published.text_encoder(text, published.load_text(text))
  some = captions(here)
  assert len(some) == 80  # of two splits
  expected = encode(some)
  opened = embeddings.Embeddings(folder)
  tokens, mask = opened(some)
  np.testing.assert_array_equal(mask, expected.mask)
  found, wanted = np.float32(tokens)[mask], expected.tokens[mask]
  off = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
  assert 0.0005 < off < error
  assert not np.float32(tokens)[~mask].any()
  assert len(opened.plan.shards) == 4


def test_lines_of_a_run(here, tmp_path, capsys):
  folder = tmp_path / "new"
  args = arguments(here, folder, "--storage=int8", "--per_shard=40")
  embed.main(args)
  *_, counts, end = capsys.readouterr().out.splitlines()
  assert counts.startswith("embedded 80 captions, ")
  assert "int8 has a relative RMS error of 0." in counts
  assert end == f"{folder} is complete: --config.data.embeddings={folder}"
  before = contents(folder)
  (folder / ".left.part").touch()  # of a process that was killed
  shard = next(folder.glob("*.keys-00001-of-*"))
  shard.unlink()
  next(folder.glob("*.array_record-00001-of-*")).write_bytes(b"half")
  embed.main(args)
  *_, counts, _ = capsys.readouterr().out.splitlines()
  assert counts.startswith("embedded 24 captions, ")
  assert contents(folder) == before


def test_shards_by_others_are_the_same_bytes(here, made, tmp_path, capfd):
  folder = tmp_path / "shared"
  for part in ("--shard=1/3", "--shard=2/3"):
    embed.main(arguments(here, folder, "--per_shard=30", part))
  with pytest.raises(ValueError, match="lack 2 of 4 shards, expected all"):
    published.check_text(build.run(stored(here, folder)).text)
  embed.main(arguments(here, folder, "--per_shard=30", "--shard=0/3"))
  assert contents(folder) == contents(made())


def test_buckets_halve():
  assert buckets.buckets(128) == [16, 32, 64, 128]
  assert buckets.buckets(77) == [20, 39, 77]
  assert buckets.buckets(2) == [2]


# --- Training.


class Net(nn.Module):
  """Text at the tokens that count, summed, beside the image."""

  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    real = cond.text.tokens * cond.text.mask[..., None]
    return z + nn.Dense(3)(real.sum(1))[:, None, None, :]


def losses(config, start=0, count=2):
  """The losses [B] of some batches, of a net that reads the text."""
  run = build.run(config)
  run = dataclasses.replace(
    run, stage=dataclasses.replace(run.stage, net=Net())
  )
  devices = mesh.make_mesh(devices=jax.devices()[:1])
  with jax.set_mesh(devices):
    of = setup.set_up(run, devices)
    params = published.load_text(run.text, of.placement)
    state = jax.tree.map(
      lambda leaf: np.random.default_rng(0).normal(0, 0.2, leaf.shape),
      of.state.params,
    )
    state = jax.tree.map(jnp.float32, state)
    draws = run.stage.draw(jax.random.key(1), run.data.batch_size)
    draws = draws.replace(dropped=jnp.arange(run.data.batch_size) % 3 == 0)

    @jax.jit
    def loss(state, params, batch):
      text = encode_text(run.text.embedder, params, batch, draws.dropped)
      return batch_loss(run.stage, state, draws, batch, text)[0]

    batches = [
      *open_batches(
        run.stage, run.data, published.tokenizer(run.text),
        split=run.data.split, batch_size=run.data.batch_size,
        start_step=start, steps=count,
      )
    ]  # fmt: skip
    return [np.asarray(loss(state, params, batch)) for batch in batches]


NULLS = [
  {},
  {"text.null": "empty"},
  {"text.null": "empty", "text.attend_padding": True},
]


@pytest.mark.parametrize("changes", NULLS, ids=["zeros", "empty", "padding"])
def test_the_loss_is_that_of_the_encoder(here, made, capfd, changes):
  """Also of dropped captions, and a resumed run has the same batches."""
  seen = changes.get("text.attend_padding")
  flags = ("--config.text.attend_padding=True",) if seen else ()
  online = losses(config_of(here, **changes))
  config = stored(here, made(*flags), **changes)
  offline = losses(config)
  np.testing.assert_allclose(offline, online, rtol=1e-2)
  assert np.abs(np.subtract(offline, online)).max() > 0  # rounded, not encoded
  (again,) = losses(config, start=1, count=1)
  np.testing.assert_array_equal(again, offline[1])


def test_no_encoder_is_needed(here, made, capfd, tmp_path):
  """Its files are not there, but their names are as they were."""
  weights = tmp_path / pathlib.Path(config_of(here).text.weights).name
  config = stored(here, made(), **{"text.weights": str(weights)})
  run = build.run(config)
  published.check_text(run.text)
  assert published.load_text(run.text) == {} == run.text.shapes()
  assert not weights.exists()


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"text.length": 12}, "made with text.length 32, expected 12 as in the co"),
    ({"text.lowercase": True}, "made with text.lowercase False, expected True"),
    ({"text.attend_padding": True}, "made with text.attend_padding False, exp"),
    ({"text.encoder.dtype": "bfloat16"}, "text.encoder.dtype 'float32', expe"),
    (
      {"text.encoder.mlp_dim": 17},
      "text.encoder.mlp_dim 16, expected 17 as in",
    ),
    (
      {"text.weights": "other.safetensors"},
      "made with other weights, .* than t",
    ),
    (
      {"text.vocabulary": "README.md"},
      "made with other vocabulary, .* than te",
    ),
    ({"text": None}, "data.embeddings is set, but text is None"),
    ({"stage.net.text_norm": "group"}, "expected text.attend_padding=True"),
    ({"text.encoder.scan": True, "text.batch_size": 3}, ""),
  ],
)
def test_a_changed_encoder_is_named(
  here, made, capfd, monkeypatch, changes, said
):
  monkeypatch.chdir(ROOT)
  config = stored(here, made(), **changes)
  if changes.get("text", 0) is None:
    config.sampling.guidance = 1.0
  if not said:
    published.check_text(build.run(config).text)
    return
  with pytest.raises(ValueError, match=said):
    published.check_text(build.run(config).text)


def test_other_weights_of_equal_shapes_are_noticed(here, made, tmp_path, capfd):
  """Under the same name, by a sample of their bytes."""
  path = pathlib.Path(config_of(here).text.weights)
  data = bytearray(path.read_bytes())
  data[-5] ^= 1
  (tmp_path / path.name).write_bytes(data)
  config = stored(here, made())
  config.text.weights = str(tmp_path / path.name)
  with pytest.raises(ValueError, match="were made with other weights"):
    published.check_text(build.run(config).text)


def test_other_captions_end_training_in_one_sentence(here, made, capfd):
  config = stored(here, made(), **{"data.template": "a photo of {}"})
  with pytest.raises(ValueError, match="'a photo of .* has no embedding in"):
    losses(config)


@pytest.mark.parametrize(
  ("more", "said"),
  [
    (["--shard=2/2"], "--shard is '2/2', expected I/N"),
    (["--per_shard=0"], "--per_shard is 0, expected at least 1"),
    (["--config.data.name=captioned_shapes/endless"], "which has no end, exp"),
    (["--config.text.length=12"], "begun with other length, expected the same"),
    (["--storage=int8"], "was begun with other storage, expected the same, or"),
  ],
)
def test_bad_input(here, made, capfd, more, said):
  with pytest.raises(ValueError, match=said):
    embed.main(arguments(here, made(), "--per_shard=30", *more))


def test_the_program_of_sr256_has_no_encoder():
  """It needs no file either."""
  config = resolve("sr256", {"data.embeddings": "nowhere"})
  devices = mesh.make_mesh(devices=jax.devices()[:8])
  config.mesh = dict(data=-1, fsdp=4, tensor=1)
  program = programs.train_program(config, devices)
  _, weights, batch = program.args
  assert weights == {}
  assert batch["tokens"].shape == (2048, 128, 4096)
  assert batch["tokens"].dtype == jnp.bfloat16
  empty = resolve("sr256", {"data.embeddings": "x", "text.null": "empty"})
  shapes = build.run(empty).text.shapes()
  assert {name: leaf.shape for name, leaf in shapes.items()} == {
    "null_tokens": (1, 128, 4096), "null_mask": (1, 128)
  }  # fmt: skip


@pytest.mark.slow
def test_a_run_resumes_with_the_same_bits(here, made, tmp_path, state_of):
  """With sample grids, held-out losses and the empty prompt as null text."""
  changes = {
    "text.null": "empty", "train.sample_every": 4, "train.steps": 4,
    "train.validate_every": 2, "train.validate_split": "test",
    "train.validate_batches": 1, "train.checkpoint_every": 2,
  }  # fmt: skip
  config = stored(here, made(), **changes)
  imagen.train(config, tmp_path / "whole")
  half = stored(here, made(), **changes | {"train.steps": 2})
  imagen.train(half, tmp_path / "parts")
  imagen.train(config, tmp_path / "parts")
  whole, parts = (state_of(tmp_path / name, 4) for name in ("whole", "parts"))
  for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
    np.testing.assert_array_equal(one, other)
  assert [*(tmp_path / "parts").rglob("*.png")]
  summary.dry_run(build.run(config), str(tmp_path / "dry"))
  assert (tmp_path / "dry" / "dry_run.png").exists()
  config = config_of(here, **changes)
  with pytest.raises(ValueError, match="data.embeddings was of, is None"):
    imagen.train(config, tmp_path / "parts")


def test_settings_of_the_plan_are_those_that_matter(here, made, capfd):
  """The path of a file, and how layers are compiled, are no part of a key."""
  plan = embeddings.read_plan(made())
  assert plan.notes["vocabulary"].endswith("shapes.model")
  names = {name.partition(".")[2] for name in plan.encoder if "." in name}
  fields = {f.name for f in dataclasses.fields(build.nets.T5Encoder)}
  assert fields - names == {"parent", "name", "scan", "dense"}
