"""Bad input to the verb train: one sentence each, and no new folder."""

import runpy

import numpy as np

from imagen_jax import build
from imagen_jax.checkpoints import manager


def mistakes(here, tmp_path) -> list[tuple[list[str], str]]:
  """Arguments, and how their errors begin."""
  config, new = f"--config={here}/tiny.py", tmp_path / "new"
  return [
    ([config], "--workdir is needed: where checkpoints and metrics go"),
    (
      [config, f"--workdir={tmp_path}/file/new"],
      f"workdir {tmp_path}/file/new cannot be written: Not a directory",
    ),
    (
      [config, f"--workdir={new}", "--config.train.foo=1"],
      "unknown config key train.foo, expected steps, accumulate, seed, "
      "ema_decay, log_every, sample_every, checkpoint_every, "
      "keep_checkpoints, keep_every, hang_after, max_skipped, num_samples, "
      "sample_split",
    ),
    (
      [config, f"--workdir={new}", "--config.mesh.fsdp=3"],
      "mesh is {'data': -1, 'fsdp': 3, 'tensor': 1}, of 3 devices or a "
      "multiple, but there are 1",
    ),
    (
      [config, f"--workdir={new}", "--config.train.accumulate=3"],
      "batch_size is 8, expected a multiple of the 1 devices along fsdp and "
      "data times accumulate 3",
    ),
    (
      [config, f"--workdir={new}", "--config.train.steps=0"],
      "config train: steps is 0, expected at least 1",
    ),
    (
      [config, f"--workdir={new}", "--config.train.seed=-1"],
      "config train: seed is -1, expected 0 to 4294967295",
    ),
    (
      [config, f"--workdir={new}", "--config.train.sample_split=val"],
      "captioned_shapes/tiny has no split 'val', only train, test, test_unseen:"
      " change train.sample_split",
    ),
    (
      [config, f"--workdir={new}", "--config.data.split=train[:200%]"],
      "data.split is 'train[:200%]', which cannot be read: ",
    ),
    (
      [config, f"--workdir={new}", f"--config.data.data_dir={tmp_path}/file"],
      "dataset 'captioned_shapes/tiny' cannot be prepared:"
      f" {tmp_path}/file/captioned_shapes: Not a directory",
    ),
    (
      [config, f"--workdir={new}", "--config.text.weights=nowhere"],
      "weights nowhere cannot be read: No such file or directory",
    ),
    (
      [config, f"--workdir={new}", "--profile_steps=3"],
      "--profile_steps is '3', expected A:B, the first and the last step",
    ),
    *checkpoints_amiss(config, tmp_path),
  ]


def checkpoints_amiss(config: str, tmp_path) -> list[tuple[list[str], str]]:
  """The same, of what a workdir already holds."""
  return [
    (
      [config, f"--workdir={tmp_path}/damaged"],
      f"no checkpoint in {tmp_path}/damaged/checkpoints can be read, the "
      "newest, 5, because: ",
    ),
    (
      [config, f"--workdir={tmp_path}/other"],
      f"checkpoint {tmp_path}/other/checkpoints/5 has no array ema/",
    ),
    (
      [config, f"--workdir={tmp_path}/other", "--config.data.seed=7"],
      f"checkpoint {tmp_path}/other/checkpoints/5 is of another config: "
      "data.seed was 0, is 7 (--allow_config_change resumes with it)",
    ),
  ]


def test_bad_input_to_train(here, tmp_path, run_each):
  (tmp_path / "file").touch()
  config = runpy.run_path(str(here / "tiny.py"))["get_config"]()
  as_json = build.as_json(config)
  for name in ("other", "damaged"):
    with manager.Checkpoints(str(tmp_path / name), keep=1) as saved:
      saved.save(5, {"step": np.array(5)}, as_json)
  (tmp_path / "damaged" / "checkpoints" / "5" / "state" / "_METADATA").unlink()
  cases = mistakes(here, tmp_path)
  done = run_each("train", [args for args, _ in cases])
  lines = done.stderr.splitlines()
  assert len(lines) == len(cases), done.stderr
  for line, (_, said) in zip(lines, cases, strict=True):
    assert line.startswith(f"error: {said}")
  assert done.stdout.splitlines().count("exit 1") == len(cases)
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ["damaged", "file", "other"]
