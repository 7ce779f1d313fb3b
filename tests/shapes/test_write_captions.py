"""The program write_captions: the file it writes, and bad input to it."""

import subprocess
import sys

import numpy as np
import pytest

from imagen_jax.shapes import (
  captioned_shapes_dataset_builder,
  captions,
  examples,
  scenes,
)
from imagen_jax.shapes.write_captions import lines


def write(*args: str) -> subprocess.CompletedProcess:
  module = "imagen_jax.shapes.write_captions"
  return subprocess.run(
    [sys.executable, "-m", module, *args], capture_output=True, encoding="utf-8"
  )


def test_a_line_holds_captions_of_one_picture(tmp_path):
  path = tmp_path / "captions.txt"
  done = write("--images=3", "--each=4", f"--output={path}")
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
  written = path.read_text("utf-8")
  assert written == "".join(x + "\n" for x in lines("train", 3, 4, 0.1))
  for line in written.splitlines():
    said = line.split("\t")
    assert len(said) == 4 and len(set(said)) > 1
    objects = [set(scenes.COLORS) & set(c.split()) for c in said]
    assert all(objects[0] & other for other in objects)  # of one image


def test_a_line_may_begin_with_the_description():
  plain = list(lines("train", 20, 2, 0.1))
  described = list(lines("train", 20, 2, 0.1, describe=True))
  for i, (line, more) in enumerate(zip(plain, described, strict=True)):
    scene, _ = scenes.sample_scene(np.random.default_rng((0, i)), "train")
    assert more == f"{captions.description(scene)}\t{line}"


def test_one_caption_is_the_datasets_own():
  """What the shipped vocabulary was learnt from."""
  leave_out = examples.LEAVE_OUT
  for i, line in enumerate(lines("train", 5, 1, leave_out)):
    example = captioned_shapes_dataset_builder.example("train", i)
    assert line == example["caption"]


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["--each=0"], "flag --each=0"),
    (["--images=-1"], "flag --images=-1"),
    (["--leave_out=7"], "flag --leave_out=7"),
    (
      ["--output=nowhere/captions.txt"],
      "captions.txt cannot be written: No such",
    ),
    (["more"], "'more' is not a flag"),
  ],
)
def test_bad_input(tmp_path, args, said):
  done = write("--images=2", f"--output={tmp_path}/captions.txt", *args)
  assert done.returncode != 0
  assert said in done.stderr and "Traceback" not in done.stderr
  assert list(tmp_path.iterdir()) == []


def test_the_file_is_asked_for():
  done = write()
  assert done.returncode != 0
  assert "--output must have a value" in done.stderr


def test_who_imports_it_needs_no_file():
  """Flags are the process's; lines() serves others too, the tests for one."""
  code = (
    "from absl import flags\n"
    "from imagen_jax.shapes import write_captions\n"
    "flags.FLAGS(['other program'])\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
