"""Your own images in small: a folder of emoji, prepared and trained on."""

import importlib
import json
import pathlib
import runpy

import numpy as np
import pytest

from imagen_jax import prepare

FOLDER = pathlib.Path(__file__).parent
EMOJI = FOLDER.parent / "data" / "emoji"
CONFIG = runpy.run_path(str(FOLDER / "faults" / "conftest.py"))["CONFIG"]


def test_from_a_folder_to_a_trained_stage(here, tmp_path, capsys):
  """By the two commands of the documentation, without naming a split."""
  prepare.main(
    [f"--source={EMOJI}", f"--output={tmp_path}/data", "--validation=0.3"]
  )
  assert "train       7\nvalidation  5\n" in capsys.readouterr().out
  tiny, config = str(here / "tiny.py"), tmp_path / "config.py"
  config.write_text(CONFIG.format(tiny=tiny, data="unused", steps=2))
  train = importlib.import_module("imagen_jax.train")
  argv = [
    f"--config={config}", f"--config.data.name={tmp_path}/data",
    "--config.train.validate_every=2", "--config.train.validate_batches=1",
    "--config.data.flip=True", f"--workdir={tmp_path}/run",
  ]  # fmt: skip
  train.main(argv)
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  first, last = map(json.loads, lines)
  assert "validation_loss" not in first
  assert np.isfinite(last["validation_loss"])
  by_logsnr = [k for k in last if k.startswith("validation_loss_logsnr/")]
  assert 1 <= len(by_logsnr) <= 6
  assert (tmp_path / "run" / "samples" / "00000002.png").exists()
  out = capsys.readouterr().out
  assert f"step 2: loss {last['validation_loss']:.4f} on held-out images" in out

  # Another dataset under the same name is noticed.
  prepare.main(
    [f"--source={EMOJI}", f"--output={tmp_path}/other", "--validation=0.1"]
  )
  (tmp_path / "data").rename(tmp_path / "old")
  (tmp_path / "other").rename(tmp_path / "data")
  with pytest.raises(ValueError, match=r"of another config: dataset was \["):
    train.main([*argv, "--config.train.steps=3"])
