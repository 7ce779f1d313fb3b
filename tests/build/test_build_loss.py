"""config.stage's weighting and times become the objects they name."""

import pytest

from configs import shapes16
from imagen_jax import build
from imagen_jax.diffusion import weighting


def stage_of(**keys):
  config = shapes16.get_config().stage
  config.update(keys)
  return build.stage(config)


@pytest.mark.parametrize(
  ("config", "expected"),
  [
    ({"kind": "uniform"}, weighting.Uniform()),
    ({"kind": "min_snr"}, weighting.MinSNR(5.0)),
    ({"kind": "min_snr", "gamma": 2.0}, weighting.MinSNR(2.0)),
    ({"kind": "sigmoid", "bias": -1.0}, weighting.Sigmoid(-1.0)),
    # What only other kinds have does not apply.
    ({"kind": "sigmoid", "gamma": 2.0}, weighting.Sigmoid()),
  ],
)
def test_weightings(config, expected):
  assert stage_of(weighting=config).weighting == expected


def test_times():
  assert stage_of(times="even").times is weighting.even_times
  assert stage_of(times="independent").times is weighting.independent_times


def test_a_stage_that_names_neither_is_as_in_the_paper():
  stage = build.stage({"size": 64, "net": {"kind": "UNet"}})
  assert stage.weighting == weighting.Uniform()
  assert stage.times is weighting.independent_times


@pytest.mark.parametrize(
  ("keys", "said"),
  [
    ({"times": "odd"}, "config stage.times is 'odd', expected one of 'indepe"),
    (
      {"weighting": {"kind": "snr"}},
      "config stage.weighting.kind is 'snr', expected one of 'uniform', 'min",
    ),
    (
      {"weighting": {"kind": "min_snr", "colour": 1}},
      "unknown config key stage.weighting.colour, expected gamma",
    ),
    (
      {"weighting": {"kind": "min_snr", "gamma": -1.0}},
      "config stage.weighting: gamma is -1.0, expected more than 0",
    ),
    ({"weighting": "min_snr"}, "config stage.weighting is 'min_snr', expected"),
  ],
)
def test_mistakes_are_named(keys, said):
  with pytest.raises(ValueError) as caught:
    stage_of(**keys)
  assert str(caught.value).startswith(said)
