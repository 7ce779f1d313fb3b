"""Moments of features and their Frechet distance."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.evals import frechet
from imagen_jax.evals.frechet import FeatureStats, frechet_distance, merge


def relu_features(count, dim=200, seed=0):
  """Correlated, non-negative features, as Inception's are."""
  rng = np.random.default_rng(seed)
  mix = np.random.default_rng(99).normal(size=(dim, dim)) / np.sqrt(dim)
  x = rng.normal(size=(count, dim)) @ mix + 0.1 * seed
  return np.maximum(x, 0).astype(np.float32)


def by_svd(x, y):
  """The distance without a covariance: of centred features' singular values.

  tr (S1^1/2 S2 S1^1/2)^1/2 is the nuclear norm of the features' product.
  """
  x, y = x.astype(np.float64), y.astype(np.float64)
  a = (x - x.mean(0)) / np.sqrt(len(x) - 1)
  b = (y - y.mean(0)) / np.sqrt(len(y) - 1)
  overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
  shift = x.mean(0) - y.mean(0)
  return shift @ shift + (a**2).sum() + (b**2).sum() - 2 * overlap


def exact(mean, cov):
  """Moments that equal those of a Gaussian."""
  return FeatureStats(11, np.array(mean, float), np.array(cov, float) * 10)


@pytest.mark.parametrize(
  ("first", "second", "expected"),
  [
    # |m|^2 + d (1 - s)^2 for N(0, I) and N(m, s^2 I).
    (([0, 0, 0], np.eye(3)), ([1, 2, 2], 4 * np.eye(3)), 9 + 3),
    (([0, 0, 0], np.eye(3)), ([0, 0, 0], 0 * np.eye(3)), 3),
    # Commuting covariances: the sum of (s1 - s2)^2.
    (([0, 0], np.diag([1, 9])), ([0, 0], np.diag([4, 25])), 1 + 4),
    # Perpendicular singular ones: nothing overlaps.
    (([0, 0], np.diag([4, 0])), ([0, 0], np.diag([0, 9])), 13),
    # 2x2 in closed form: tr (S1 S2)^1/2 = sqrt(tr S1 S2 + 2 sqrt(det S1 S2)).
    (
      ([0, 0], [[2, 1], [1, 2]]),
      ([0, 0], [[3, -1], [-1, 1]]),
      8 - 2 * np.sqrt(6 + 2 * np.sqrt(3 * 2)),
    ),
  ],
)
def test_closed_forms(first, second, expected):
  first, second = exact(*first), exact(*second)
  assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)
  assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-12)
  assert frechet_distance(first, first) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
  ("count", "deficient"),
  [(600, False), (250, False), (200, True), (120, True), (3, True)],
)
def test_against_an_svd(count, deficient):
  """Far below 1e-6, with fewer examples than features too."""
  x, y = relu_features(count), relu_features(count, seed=1)
  stats = FeatureStats.of(x), FeatureStats.of(y)
  assert frechet_distance(*stats) == pytest.approx(by_svd(x, y), rel=1e-10)
  assert stats[0].rank_deficient == deficient


@pytest.mark.parametrize("batch", [1, 7, 64, 300])
def test_batches_and_their_order_change_nothing(batch):
  """The last batch is filled with rows that its mask leaves out."""
  x, y = relu_features(300) + 1000, relu_features(300, seed=1) + 1000
  filled = np.concatenate([x, np.full((batch, 200), 1e9, np.float32)])
  parts = []
  for start in range(0, 300, batch):
    mask = np.arange(start, start + batch) < 300
    parts.append(FeatureStats.of(filled[start : start + batch], mask))
  expected, other = FeatureStats.of(x), FeatureStats.of(y)
  for order in (parts, parts[::-1]):
    found = merge(order)
    assert found.count == 300
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-14)
    np.testing.assert_allclose(found.scatter, expected.scatter, atol=1e-9)
    assert frechet_distance(found, other) == pytest.approx(
      frechet_distance(expected, other), rel=1e-9
    )


def test_a_host_without_examples_adds_nothing():
  x = relu_features(30, 5)
  none = FeatureStats.of(x, np.zeros(30, bool))
  assert none.count == 0
  found = merge([none, FeatureStats.of(x)])
  np.testing.assert_array_equal(found.mean, FeatureStats.of(x).mean)
  assert merge([none, none]).count == 0


@pytest.mark.parametrize("gathered", [frechet._GATHERED, 3 * 8 * 50 * 4])
def test_hosts_merge_to_the_same_bits(monkeypatch, gathered):
  """Three threads as hosts, whose arrays pass through JAX's 32 bits."""
  parts = [relu_features(n, 50, seed=n) for n in (40, 0, 25)]
  slots, barrier = [None] * 3, threading.Barrier(3, timeout=60)
  host = threading.local()

  def allgather(array):
    slots[host.index] = np.asarray(jnp.asarray(array))
    barrier.wait()
    found = np.stack(slots)
    barrier.wait()
    return found

  monkeypatch.setattr(frechet, "_GATHERED", gathered)
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  monkeypatch.setattr(frechet.multihost_utils, "process_allgather", allgather)
  results = [None] * 3

  def run(index):
    host.index = index
    results[index] = frechet.merge_hosts(FeatureStats.of(parts[index]))

  threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  expected = FeatureStats.of(np.concatenate(parts))
  for found in results:
    assert found.count == 65
    np.testing.assert_array_equal(found.scatter, results[0].scatter)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-14)
    np.testing.assert_allclose(found.scatter, expected.scatter, atol=1e-12)


@pytest.mark.parametrize(
  ("act", "message"),
  [
    (lambda: FeatureStats.of(np.zeros(3)), r"features are \[3\], expected"),
    (
      lambda: FeatureStats.of(np.zeros((3, 2)), [True]),
      r"mask is \[1\], expected \[3\]",
    ),
    (
      lambda: FeatureStats.of(np.array([[0.0], [np.nan]])),
      "features have NaN or infinity in row 1, expected finite",
    ),
    (lambda: merge([]), "no features to merge, expected at least 1"),
    (
      lambda: merge([exact([0], [[1]]), exact([0, 0], np.eye(2))]),
      "dimensions 1 and 2, expected those of one",
    ),
    (
      lambda: frechet_distance(exact([0], [[1]]), exact([0, 0], np.eye(2))),
      "dimensions 1 and 2, expected those of one",
    ),
    (
      lambda: FeatureStats.of(np.zeros((1, 2))).covariance,
      "features of 1 examples have no covariance, expected at least 2",
    ),
  ],
)
def test_bad_input(act, message):
  with pytest.raises(ValueError, match=message):
    act()


def test_a_few_examples_equal_themselves():
  """A root of rounding errors for each feature would add up to 1e-6."""
  stats = FeatureStats.of(relu_features(6))
  size = np.trace(stats.covariance)
  assert frechet_distance(stats, stats) == pytest.approx(0, abs=1e-10 * size)


def test_masked_rows_may_be_anything():
  x = np.array([[1.0], [np.nan], [3.0]])
  assert FeatureStats.of(x, [True, False, True]).mean == [2.0]
