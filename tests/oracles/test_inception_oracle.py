"""Inception v3, TF1's resize and the distance against torch-fidelity live."""

import pathlib
import runpy

import flax.traverse_util
import numpy as np
import pytest

from imagen_jax.evals.features import inception_features, resize_tf1
from imagen_jax.evals.frechet import FeatureStats, frechet_distance

HERE = pathlib.Path(__file__).parent
SCRIPT = runpy.run_path(str(HERE / "make_inception_fixture.py"))


@pytest.mark.oracles
def test_live_features_equal_the_fixture(remade):
  remade("make_inception_fixture.py", atol=1e-4)


@pytest.mark.oracles
def test_features_at_full_size():
  params = {
    name: SCRIPT["weight"](name, shape)
    for name, shape in SCRIPT["shapes"]().items()
  }
  images = SCRIPT["make_images"]()
  expected = SCRIPT["run"](params, images, 299)
  tree = flax.traverse_util.unflatten_dict(params, sep="/")
  found = inception_features(tree, images)
  for tap, value in expected.items():
    error = np.abs(found[tap] - value).max() / np.abs(value).max()
    assert error < 1e-5, (tap, error)


@pytest.mark.oracles
@pytest.mark.parametrize("side", [32, 64, 256, 299, 1024])
def test_resize(side):
  images = np.random.default_rng(side).integers(0, 256, (1, side, side + 7, 3))
  images = images.astype(np.uint8)
  found, expected = resize_tf1(images), SCRIPT["resized"](images, 299)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.oracles
@pytest.mark.parametrize(("count", "bar"), [(300, 1e-6), (60, 5e-6)])
def test_distance(count, bar):
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(100, 100))
  x, y = (np.maximum(rng.normal(size=(count, 100)) @ mix, 0) for _ in "xy")
  try:
    metric = SCRIPT["fidelity"]("metric_fid").fid_statistics_to_metric
  except (ImportError, RuntimeError) as error:
    pytest.skip(f"torchvision does not fit torch: {error}")
  moments = [
    {"mu": f.mean(0), "sigma": np.cov(f, rowvar=False)} for f in (x, y)
  ]
  expected = metric(*moments, verbose=False)["frechet_inception_distance"]
  found = frechet_distance(FeatureStats.of(x), FeatureStats.of(y))
  assert found == pytest.approx(expected, rel=bar)
