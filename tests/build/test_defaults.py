"""Configs with every default written out, as checkpoints keep them."""

import copy
import dataclasses
import json
import pathlib
import runpy

import pytest
from ml_collections import ConfigDict

from imagen_jax import build
from imagen_jax.build import defaults, diffusion, nets, runs
from imagen_jax.checkpoints.config_changes import config_changes

FOLDER = pathlib.Path(__file__).parents[2] / "configs"


def read(name: str) -> ConfigDict:
  config = runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"]()
  return ConfigDict(config.to_dict(), type_safe=False)


def leaves(tree, key=""):
  """(key, value) of everything in a config as JSON."""
  parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
  for name, part in parts:
    if isinstance(part, dict | list):
      yield from leaves(part, f"{key}{name}.")
    else:
      yield f"{key}{name}", part


@pytest.mark.parametrize("name", ["shapes16", "sr256"])
def test_what_is_filled_in_is_what_is_built(name):
  """The config with its defaults describes the same run, and is complete."""
  config = read(name)
  full = build.as_json(config)
  assert build.run(ConfigDict(full)) == build.run(config)
  assert build.as_json(full) == full
  given = json.loads(config.to_json_best_effort())
  assert dict(leaves(full)).keys() > dict(leaves(given)).keys()


def test_a_key_left_out_is_compared_at_its_default():
  """One at a time, of every section, at every depth."""
  config, full = read("sr256"), build.as_json(read("sr256"))
  short = build.as_json(config)
  for part, key in (
    (short["stage"], "max_aug_level"),
    (short["stage"], "aug_schedule"),
    (short["stage"]["schedule"], "logsnr_min"),
    (short["stage"]["net"], "norm_groups"),
    (short["stage"]["net"]["blocks"][1], "num_attention_heads"),
    (short["text"], "null"),
    (short["text"]["encoder"], "relpos_buckets"),
    (short["sampling"], "aug_level"),
    (short["sampling"]["step"], "gamma"),
    (short["optimizer"], "b2"),
    (short["data"], "seed"),
    (short["train"], "ema_decay"),
  ):
    del part[key]
  assert config_changes(short, full) != ""
  assert config_changes(build.as_json(short), full) == ""
  other = copy.deepcopy(full)
  other["stage"]["net"]["norm_groups"] = 16
  other["data"]["seed"] = 3
  assert config_changes(build.as_json(short), other) == (
    "data.seed was 0, is 3; stage.net.norm_groups was 32, is 16"
  )


def test_every_default_can_be_written_out():
  """Of all kinds there are, also those that no config names."""
  for cls, names, kinds in defaults.SECTIONS.values():
    defaults._section({}, cls, names, kinds)
  tables = [runs.OPTIMIZERS, nets.NETS]
  tables += [
    *diffusion.STAGE_KINDS.values(),
    *diffusion.SAMPLING_KINDS.values(),
  ]
  for table in tables:
    for kind, cls in table.items():
      full = defaults._kind({"kind": kind}, table, nets.NET_NAMES)
      wanted = defaults._defaults(cls) if isinstance(cls, type) else {}
      assert full.keys() == {"kind", *wanted}


def test_two_names_of_one_thing_are_no_change():
  config = read("shapes16")
  plain = build.as_json(config)
  config.stage.net.activation = "swish"
  assert config_changes(plain, build.as_json(config)) == ""
  config.stage.net.activation = "gelu"
  assert config_changes(plain, build.as_json(config)) == (
    "stage.net.activation was silu, is gelu"
  )


def test_what_is_not_known_stays_and_is_a_change():
  """As of a newer version, or of one before a key was removed."""
  config, full = read("shapes16"), build.as_json(read("shapes16"))
  full["stage"]["colour"] = 1
  full["stage"]["schedule"] = {"kind": "fractal", "depth": 2}
  full["extra"] = {"a": 1}
  found = build.as_json(full)
  assert found == full
  assert config_changes(found, build.as_json(config)) == (
    "extra.a was 1, is not set; stage.colour was 1, is not set; "
    "stage.schedule.kind was fractal, is cosine"
  )


def test_a_new_field_of_a_dataclass_is_a_new_default(monkeypatch):
  @dataclasses.dataclass(frozen=True)
  class Tomorrow(runs.Data):
    colour: str = "all"

  saved = build.as_json(read("shapes16"))
  sections = defaults.SECTIONS | {"data": (Tomorrow, {}, {})}
  monkeypatch.setattr(defaults, "SECTIONS", sections)
  now = build.as_json(read("shapes16"))
  assert config_changes(saved, now) == "data.colour was not set, is all"
  assert config_changes(build.as_json(saved), now) == ""
  now["data"]["colour"] = "red"
  found = config_changes(build.as_json(saved), now)
  assert found == "data.colour was all, is red"
