"""With which changes of its config a run may resume."""

import copy
import json
import pathlib
import re
import runpy

import pytest

from imagen_jax.checkpoints import config_changes as rules
from imagen_jax.checkpoints.config_changes import FREE, config_changes

FOLDER = pathlib.Path(__file__).parents[2] / "configs"


def read(name: str) -> dict:
  """A config as a checkpoint has it."""
  config = runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"]()
  return json.loads(config.to_json_best_effort())


SR256 = read("sr256")


def put(config: dict, key: str, value) -> dict:
  """A copy of a config with "a.b[0].c" = value."""
  config = part = copy.deepcopy(config)
  *path, last = key.replace("[", ".").replace("]", "").split(".")
  for name in path:
    part = part[int(name)] if isinstance(part, list) else part[name]
  part[last] = value
  return config


FREELY = {
  "mesh": {"data": 1, "fsdp": 8, "tensor": 2},
  "mesh.fsdp": 1,
  "sampling.step": {"kind": "ddim"},
  "weights": "elsewhere",
  "text.batch_size": 1,
  "text.encoder.scan": False,
  "text.weights": "/data/t5/t5_v1_1_xxl.safetensors",
  "text.vocabulary": "/data/sentencepiece.model",
  "stage.net.scan": False,
  "stage.net.remat": "all",
  "stage.net.blocks[0].remat": "all",
  "stage.net.blocks[3].remat": "all",
  "data.data_dir": "/data",
  "data.cache": True,
  "data.max_bad_share": 0.5,
  "data.max_small_share": 0.9,
  "data.threads": 16,
  "data.reads": 100,
  "data.buffer": 8,
  "data.patience": 9,
} | dict.fromkeys(
  (
    "train.steps", "train.accumulate", "train.log_every",
    "train.sample_every", "train.checkpoint_every", "train.keep_checkpoints",
    "train.keep_every", "train.num_samples", "train.max_skipped",
    "train.sample_split", "train.start_from", "train.hang_after",
    "train.validate_every", "train.validate_batches", "train.validate_split",
    "train.evaluate_every", "train.evaluate_metric", "train.evaluate_images",
  ),
  7,
)  # fmt: skip


@pytest.mark.parametrize("key", FREELY)
def test_what_does_not_change_what_is_computed_may_change(key):
  changed = put(SR256, key, FREELY[key])
  assert changed != SR256
  assert config_changes(SR256, changed) == config_changes(changed, SR256) == ""


def test_all_of_these_are_tried():
  tried = {re.sub(r"\[\d\]", "[]", key) for key in FREELY}
  assert tried >= set(FREE) - {"sampling"}


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("data.batch_size", 64, "was 2048, is 64"),
    ("data.name", "other", "was captioned_shapes, is other"),
    ("data.least_side", 9, "was 256, is 9"),
    ("data.seed", 1, "was not set, is 1"),
    ("data.split", "train[:9]", "was not set, is train[:9]"),
    ("train.ema_decay", 0.9, "was 0.9999, is 0.9"),
    ("train.seed", 1, "was not set, is 1"),
    ("optimizer.decay_steps", 9, "was 2500000, is 9"),
    ("stage.net.blocks[1].channels", 9, "was 256, is 9"),
    ("stage.net.blocks[1].strides", [1, 2], "was [2, 2], is [1, 2]"),
    ("stage.net.dtype", "float32", "was bfloat16, is float32"),
    ("stage.schedule.kind", "linear", "was cosine, is linear"),
    ("text.length", 9, "was 128, is 9"),
    ("text.weights", "t5/xl", "was t5_v1_1_xxl.safetensors, is xl"),
  ],
)
def test_what_changes_what_is_computed_is_named(key, value, said):
  assert config_changes(SR256, put(SR256, key, value)) == f"{key} {said}"


def test_a_block_less():
  changed = copy.deepcopy(SR256)
  changed["stage"]["net"]["blocks"].pop()
  said = config_changes(SR256, changed)
  assert said.startswith("stage.net.blocks[3].channels was 1024, is not set; ")


def test_of_another_kind_only_the_kind_is_named():
  changed = put(SR256, "stage.schedule", {"kind": "linear", "beta_min": 0.1})
  changed = put(changed, "stage.schedule2", 1)
  assert config_changes(SR256, changed) == (
    "stage.schedule.kind was cosine, is linear; "
    "stage.schedule2 was not set, is 1"
  )


def test_keys_that_were_renamed_or_removed(monkeypatch):
  """Each has one rule; a renamed one's value is not its new default."""
  monkeypatch.setattr(rules, "RENAMED", {"a.old": "a.new"})
  monkeypatch.setattr(rules, "REMOVED", {"gone": 1})
  saved = {"a": {"old": {"x": 1, "y": 2}, "older": 3}, "gone": 1}
  now = {"a": {"new": {"x": 1, "y": 2}, "older": 3}}
  assert config_changes(saved, now) == ""
  filled = {"a": {**saved["a"], "new": {"x": 0, "z": 0}}, "gone": 1}
  assert config_changes(filled, now) == ""
  assert config_changes(saved | {"gone": 2}, now) == "gone was 2, is not set"
  now["a"]["new"]["x"] = 5
  assert config_changes(filled, now) == "a.new.x was 1, is 5"


def test_a_few_are_named_and_the_rest_counted():
  said = config_changes({}, {"a": dict.fromkeys("hgfedcb", 1)})
  first = "; ".join(f"a.{key} was not set, is 1" for key in "bcdef")
  assert said == f"{first}; and 2 more"
  assert "more" not in config_changes({}, dict.fromkeys("hgfed", 1))


def test_what_json_makes_of_a_value_is_no_change():
  ours = {"a": (1, 2), "b": [{"c": (3, 4)}], "d": 1.0, "e": None, "f": ()}
  assert config_changes(json.loads(json.dumps(ours)), ours) == ""
  assert config_changes({"d": 1}, {"d": 1.0}) == ""


def test_all_of_a_stages_config_is_like_itself():
  for name in ("base_64", "sr256", "sr1024", "shapes16", "shapes64"):
    assert config_changes(read(name), read(name)) == ""
  assert config_changes(read("sr256"), read("sr1024"))
