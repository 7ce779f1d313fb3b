"""The verb pretrain: a text encoder from captions alone, and bad input."""

import re
import runpy

import jax
import jax.numpy as jnp
import pytest

from imagen_jax import build
from imagen_jax.interop import weights


@pytest.fixture(scope="module")
def done(here, run_each):
  """A short run that succeeds, and eight that do not."""
  (here / "captions.txt").write_text(
    "a red star\tone star that is red\na blue circle\ta circle, it is blue\n"
  )
  (here / "one.txt").write_text("a red star\tone star\na blue circle\n")
  (here / "file").touch()
  args = [f"--config={here}/tiny.py", "--batch_size=4", "--steps=3"]
  good, int8 = f"--captions={here}/captions.txt", "--config.text.int8=True"
  return run_each(
    "pretrain",
    [
      [*args, good, f"--output={here}/new/text.safetensors"],
      ["--config=bert", good, f"--output={here}/bad.safetensors"],
      [*args, good],
      [*args, good, f"--output={here}/file/new/text.safetensors"],
      [*args, f"--captions={here}/one.txt", f"--output={here}/bad.safetensors"],
      [*args, "--captions=nowhere.txt", f"--output={here}/bad.safetensors"],
      [*args, good, f"--output={here}/bad.safetensors", int8],
      [*args, good, f"--output={here}/new"],
      [*args, good, f"--output={here}/new/t5.model"],
    ],
  )


def test_progress_and_size(done, here):
  line = r"pretrain 3/3  \S+ s/step  ETA 0:00:00  loss \d\.\d+  right \d+\.\d%"
  shown = [x for x in done.stdout.splitlines() if not x.startswith("exit")]
  assert re.fullmatch(line, shown[0])
  assert re.fullmatch(rf"{here}/new/text.safetensors: 0\.\d\d MB", shown[1])


def test_what_it_writes_is_the_encoder_of_the_config(done, here):
  path = here / "new" / "text.safetensors"
  config = runpy.run_path(str(here / "tiny.py"))["get_config"]()
  config = build.text(config.text)
  like = jax.eval_shape(lambda: config.init(jax.random.key(0)))
  trained = weights.load_weights(path, like)
  first = config.init(jax.random.key(0))
  for (names, new), old in zip(
    jax.tree.leaves_with_path(trained), jax.tree.leaves(first), strict=True
  ):
    moved = (new != old.astype(jnp.bfloat16)).mean()
    assert moved > 0.1 or names[-1].key == "scale"  # 1, not yet 1 + 1/256
  note = weights.read_metadata(path)
  assert note["steps"] == "3"
  tokenizer = build.tokenizer(config)
  assert note["vocabulary_sha256"] == tokenizer.fingerprint


def test_bad_input_is_one_line_and_makes_nothing(done, here):
  assert done.stderr.splitlines() == [
    "error: config text is not of T5, expected text.kind t5: others are not "
    "trained here",
    "error: --captions and --output are needed, see --help",
    f"error: output {here}/file/new cannot be written: Not a directory",
    f"error: line 2 of {here}/one.txt has 1 caption(s) in 1 column(s), "
    "expected two or more and none empty",
    "error: captions nowhere.txt cannot be read: No such file or directory",
    "error: config text.int8 is True, expected False for training",
    f"error: output {here}/new is a folder, expected a file such as "
    f"{here}/new/output.safetensors",
    f"error: output {here}/new/t5.model has the wrong ending, expected "
    ".safetensors",
  ]
  assert done.stdout.splitlines().count("exit 1") == 8
  assert not (here / "bad.safetensors").exists()
