"""A config's keys become settings, and every mistake is named."""

import dataclasses
from typing import Any

import flax.linen as nn
import pytest
from ml_collections import ConfigDict

from imagen_jax.build import keys


@dataclasses.dataclass(frozen=True)
class Cake:
  layers: int
  sugar: float = 0.5
  name: str = "plain"
  baked: bool = True
  tiers: tuple[int, ...] = (1,)
  icing: Any = None
  candles: int | None = None

  def __post_init__(self):
    if self.layers < 1:
      raise ValueError(f"layers is {self.layers}, expected at least 1")


class Oven(nn.Module):
  heat: int = 180


def bake(**config) -> Cake:
  hints = keys.fields(Cake)
  return keys.fill(Cake, ConfigDict(config), "order.cake", hints)


def test_what_is_left_out_has_its_default():
  assert bake(layers=2) == Cake(2)
  everything = dict(
    layers=3, sugar=1, name="x", baked=False, tiers=[3, 2], icing=[1], candles=4
  )
  made = bake(**everything)
  assert made == Cake(3, 1, "x", False, (3, 2), (1,), 4)
  hash(made)  # lists became tuples


def test_resolved_values_take_the_place_of_the_configs():
  config = {"layers": 2, "icing": {"kind": "sugar"}}
  made = keys.fill(Cake, config, "cake", keys.fields(Cake), icing="done")
  assert made == Cake(2, icing="done")


@pytest.mark.parametrize(
  ("config", "said"),
  [
    (
      {"layers": 1, "layerz": 2},
      "unknown config key order.cake.layerz, expected layers, sugar, name, "
      "baked, tiers, icing, candles",
    ),
    ({"layers": "2"}, "config order.cake.layers is '2', expected int"),
    ({"layers": 1.5}, "config order.cake.layers is 1.5, expected int"),
    ({"layers": True}, "config order.cake.layers is True, expected int"),
    ({"layers": None}, "config order.cake.layers is None, expected int"),
    ({"layers": 0}, "config order.cake: layers is 0, expected at least 1"),
    (
      {"layers": 1, "candles": "four"},
      "config order.cake.candles is 'four', expected int | None",
    ),
    (
      {"layers": 1, "tiers": [1, "b"]},
      "config order.cake.tiers is [1, 'b'], expected tuple[int, ...]",
    ),
    ({"layers": 1, "baked": 1}, "config order.cake.baked is 1, expected bool"),
  ],
)
def test_mistakes_are_named(config, said):
  with pytest.raises(ValueError) as caught:
    bake(**config)
  assert str(caught.value) == said


def test_a_key_that_must_be_there():
  with pytest.raises(ValueError, match=r"^config order.cake: .* 'layers'$"):
    bake(sugar=0.1)


@pytest.mark.parametrize("value", [None, 3, "text", (1, 2)])
def test_what_is_no_part_of_a_config(value):
  said = r"^config cake is .*, expected keys with values$"
  with pytest.raises(ValueError, match=said):
    keys.fill(Cake, value, "cake", keys.fields(Cake))
  with pytest.raises(ValueError, match=said):
    keys.kind(value, "cake", {})
  with pytest.raises(ValueError, match=said):
    keys.check_names(value, "cake.", ())


@pytest.mark.parametrize(
  ("value", "hint", "expected"),
  [
    (1, int, True),
    (1, float, True),
    (1.0, int, False),
    (True, int, False),
    (True, float, False),
    (True, bool, True),
    (0, bool, False),
    ("a", str, True),
    (1, str, False),
    (None, int | None, True),
    (2.0, float | None, True),
    ("2", float | None, False),
    ((1, 2), tuple[int, ...], True),
    ((), tuple[int, ...], True),
    ((1, 2.5), tuple[int, ...], False),
    (3, tuple[int, ...], False),
    ("abc", tuple[str, ...], False),
    (object(), Any, True),
    (True, Any, True),
  ],
)
def test_fits(value, hint, expected):
  assert keys.fits(value, hint) is expected


def test_settings_of_modules():
  assert keys.fields(Oven) == {"heat": int}


def test_kind():
  options = {"a": Cake, "b": Oven}
  config = ConfigDict({"kind": "b", "heat": 3})
  assert keys.kind(config, "x", options) == (Oven, {"heat": 3})
  assert config.kind == "b"  # it is as it was
  for bad in ({"kind": "c"}, {}):
    with pytest.raises(
      ValueError, match="^config x.kind is .* one of 'a', 'b'"
    ):
      keys.kind(ConfigDict(bad), "x", options)


def test_check_names():
  config = ConfigDict({"a": 1, "b": 2})
  keys.check_names(config, "", ("a", "b"))
  with pytest.raises(
    ValueError, match=r"^config key x.b is unknown, expected a"
  ):
    keys.check_names(config, "x.", ("a",))
  with pytest.raises(
    ValueError, match=r"^config key c is missing, expected a, "
  ):
    keys.check_names(config, "", ("a", "b", "c"))
