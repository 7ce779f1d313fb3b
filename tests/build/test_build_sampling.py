"""build: the configs of samplers, of thresholds and of schedules."""

import re

import jax
import pytest

from imagen_jax import build
from imagen_jax.configs import shapes, shapes16
from imagen_jax.diffusion import guidance, samplers, schedules
from imagen_jax.diffusion.augment import bilinear_aligned
from imagen_jax.interop.deepfloyd_if import TIMESTEPS
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.stage import Sampling, Stage


@pytest.mark.parametrize(
  ("config", "expected"),
  [
    ({}, Sampling()),
    (
      {
        "steps": 9,
        "guidance": 3,
        "step": {"kind": "ddim"},
        "threshold": {"kind": "dynamic", "p": 90},
        "aug_level": 0.5,
      },
      Sampling(
        9, 3, samplers.DDIM(), guidance.DynamicThreshold(90), aug_level=0.5
      ),
    ),
    (
      {
        "step": {"kind": "ancestral", "gamma": 1.0},
        "threshold": {"kind": "none"},
      },
      Sampling(step=samplers.Ancestral(1.0), threshold=guidance.NoThreshold()),
    ),
    (
      {"step": {"kind": "dpm_solver++"}, "timesteps": "fast27"},
      Sampling(step=samplers.DPMSolver(), timesteps=TIMESTEPS["fast27"]),
    ),
    (
      {"step": {"kind": "ancestral_learned"}, "timesteps": [9, 5]},
      Sampling(step=samplers.LearnedAncestral(), timesteps=(9, 5)),
    ),
    (
      {"threshold": {"kind": "dynamic", "p": 95, "cap": 1.5}},
      Sampling(threshold=guidance.DynamicThreshold(95, 1.5)),
    ),
    (
      {"guidance_interval": [-1, 2.5], "guidance_rescale": 0.7},
      Sampling(guidance_interval=(-1, 2.5), guidance_rescale=0.7),
    ),
    (
      {"threshold": {"kind": "static"}},
      Sampling(threshold=guidance.StaticThreshold()),
    ),
  ],
)
def test_sampling(config, expected):
  assert build.sampling(config) == expected
  assert hash(build.sampling(config)) == hash(expected)  # static under jit


def test_a_kind_can_be_changed_alone():
  """What the kind before had may stay: a command line cannot remove it."""
  config = shapes16.get_config().sampling
  assert "gamma" in config.step and "p" in config.threshold
  config.step.kind = "dpm_solver++"
  config.threshold.kind = "static"
  made = build.sampling(config)
  assert made.step == samplers.DPMSolver()
  assert made.threshold == guidance.StaticThreshold()
  config.step.eta = 1.0
  with pytest.raises(ValueError, match="^unknown config key sampling.step.eta"):
    build.sampling(config)


def test_a_stage_as_deepfloyds():
  table = {"kind": "discrete_cosine"}
  made = build.stage(
    {
      "size": 64,
      "net": {"kind": "UNet"},
      "schedule": table,
      "aug_schedule": table,
      "upsample": "bilinear_aligned",
    }
  )
  table = schedules.DiscreteCosineSchedule()
  assert made == Stage(
    UNet(), 64, table, aug_schedule=table, upsample=bilinear_aligned
  )


def test_who_upsamples_is_named_or_nobody():
  config = {"size": 64, "net": {"kind": "UNet"}}
  named = build.stage(config | {"upsample": "bilinear_aligned"})
  assert build.stage(config | {"enlarge": "bilinear_aligned"}) == named
  assert build.stage(config | {"upsample": None}).upsample is None
  with pytest.raises(
    ValueError, match="stage.upsample is 'cubic', expected one of 'bilinear_al"
  ):
    build.stage(config | {"upsample": "cubic"})


@pytest.mark.parametrize(
  ("mesh", "tensor", "expected"),
  [
    (None, 2, ()),
    ({"tensor": "channels"}, 2, ()),
    ({"tensor": "height"}, 1, ()),  # there is nothing to shard
    ({"tensor": "height"}, 2, ("shapes64",)),
    (
      {"tensor": "width"},
      2,
      "config shapes64.mesh is {'tensor': 'width'}, exp",
    ),
    (
      {"tensor": 2},
      2,
      "config shapes64.mesh is {'tensor': 2}, expected tensor",
    ),
    ({"data": 2}, 2, "config shapes64.mesh is {'data': 2}, expected tensor='c"),
    (2, 2, "config shapes64.mesh is 2, expected tensor='channels' or tensor="),
    (
      {"tensor": "height"},
      3,
      "config shapes64.mesh.tensor is 'height', of 64 ",
    ),
  ],
)
def test_what_the_tensor_axis_shards_in_a_stage(mesh, tensor, expected):
  config = shapes.get_config()
  if mesh is not None:
    config.shapes64 = dict(config.shapes64) | {"mesh": mesh}
  devices = make_mesh(MeshShape(1, 1, tensor), jax.devices()[:tensor])
  if isinstance(expected, tuple):
    assert build.height_stages(config, devices) == expected
    build.cascade(config)
  else:
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}"):
      build.height_stages(config, devices)
