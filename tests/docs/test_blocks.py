"""Every block of code of README and the pages runs, in small.

A block that cannot be run has a comment before it: <!-- not run: REASON -->.
A block of a page runs in the page's order and in one folder, with few steps.
"""

import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
# Pages whose blocks another test runs, each in its own way.
ELSEWHERE = {
  "CONTRIBUTING.md": "tests/test_contributing.py",
  "docs/pods.md": "tests/launch/test_pods_page.py",
  "docs/captioned_shapes.md": "tests/docs/test_pages.py",
}
# What the pages suppose to be there.
BEFORE = {
  "docs/weights.md": [
    "python -m imagen_jax.train --config=configs/shapes16.py"
    " --workdir=runs/shapes16",
    "ln -s shapes16 runs/mine",
  ],
  "docs/training.md": [
    "python -m imagen_jax.prepare --source=FOLDER --validation=0.5"
    " --output=DIR/my_set/1.0.0"
  ],
}
LANGUAGES = ("", "bash", "python", "text")
# A python before all others on PATH, which makes a verb's work small.
SHIM = """#!{python}
import os, sys
FEW = {{
  "train": "--config.train.steps=2 --config.optimizer.warmup_steps=1"
  " --config.data.batch_size=4 --config.train.num_samples=2",
  "sample": "--steps=1",
  "evaluate": "--steps=1 --num_images=2 --images_per_prompt=1"
  " --dataset=captioned_shapes/tiny --noplot",
  "pretrain": "--steps=2 --batch_size=8",
}}
args = sys.argv[1:]
if args[:1] == ["-m"]:
  verb = args[1].removeprefix("imagen_jax.")
  args += FEW.get(verb, "").split()
  if verb in ("train", "embed") and "data.name" not in " ".join(args):
    args.append("--config.data.name=captioned_shapes/tiny")
  if "own.py" in " ".join(args):
    net = {{"embed_dim": 32, "text_width": 32, "num_res_blocks": 1}}
    args += [f"--config.stage.net.{{key}}={{net[key]}}" for key in net]
os.execv("{python}", ["{python}", *args])
"""


class Block(NamedTuple):
  """A block of code, its language, and why it is not run."""

  language: str
  code: str
  reason: str


def blocks(text: str) -> list[Block]:
  """Returns a page's blocks of code, without Sphinx's own."""
  found = re.finditer(
    r"(?:<!-- not run: (?P<why>.*?) -->\n+)?"
    r"^ *```(?P<language>[^\n`]*)\n(?P<code>.*?)^ *```$",
    text,
    re.S | re.M,
  )
  return [
    Block(it["language"], it["code"], " ".join((it["why"] or "").split()))
    for it in found
    if not it["language"].startswith("{")
  ]


PAGES = {
  str(path.relative_to(ROOT)): blocks(path.read_text("utf-8"))
  for path in [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("launch/*.md"),
    *ROOT.glob("studies/*.md"),
  ]
}
RUN = sorted(
  name
  for name, found in PAGES.items()
  if name not in ELSEWHERE
  and any(b.language != "text" and not b.reason for b in found)
)


def test_blocks_are_of_known_languages():
  for name, found in PAGES.items():
    if name not in ELSEWHERE:
      assert {block.language for block in found} <= {*LANGUAGES}, name
  assert all((ROOT / test).exists() for test in ELSEWHERE.values())
  assert len(RUN) > 5


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("```\nls\n```", Block("", "ls\n", "")),
    ("a\n\n```python\n1\n```\n", Block("python", "1\n", "")),
    (
      "<!-- not run: needs\na pod -->\n\n```\nls\n```\n",
      Block("", "ls\n", "needs a pod"),
    ),
    ("```{toctree}\na\n```", None),
  ],
)
def test_a_block_is_found(text, expected):
  assert blocks(text) == [expected] * (expected is not None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A checkout's files beside what the pages suppose to be there."""
  for name in ("configs", "launch", "benchmarks", "examples"):
    (tmp_path / name).symlink_to(ROOT / name)
  # A copy, which the page of the demo's weights writes into.
  weights = pathlib.Path("imagen_jax", "weights")
  shutil.copytree(ROOT / weights, tmp_path / weights)
  (tmp_path / "captions.txt").write_text("a red star\na blue circle\n")
  images = tmp_path / "FOLDER"
  images.mkdir()
  noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), np.uint8)
  for i, pixels in enumerate(noise):
    Image.fromarray(pixels).save(images / f"{i}.png")
    (images / f"{i}.txt").write_text(f"a red star number {i}\n")
  bin_ = tmp_path / "bin"
  bin_.mkdir()
  shim = bin_ / "python"
  shim.write_text(SHIM.format(python=sys.executable))
  shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):  # the tests have eight
    monkeypatch.delenv(name, raising=False)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_the_blocks_of_a_page_run(name, folder):
  page = [b for b in PAGES[name] if not b.reason and b.language != "text"]
  shell = [b.code for b in page if b.language in ("", "bash")]
  python = [b.code for b in page if b.language == "python"]
  shell = [*BEFORE.get(name, []), *shell]
  scripts = [["bash", "-euo", "pipefail", "-c", code] for code in shell]
  if python:
    scripts.append([sys.executable, "-c", "\n".join(python)])
  for script in scripts:
    done = subprocess.run(script, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, script[-1] + done.stdout + done.stderr
