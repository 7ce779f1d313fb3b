"""Features that are kept one by one."""

import threading

import jax
import numpy as np
import pytest

from imagen_jax.evals import embeddings
from imagen_jax.evals.embeddings import Embeddings, join, join_hosts


def test_rows_that_are_left_out_keep_their_places():
  found = Embeddings.of(np.array([[1, 2], [3, 4]]), [True, False])
  found = join([found, Embeddings.of([[5.0, 6.0]])])
  np.testing.assert_array_equal(found.rows, [[1, 2], [np.nan] * 2, [5, 6]])
  np.testing.assert_array_equal(found.known, [[1, 2], [5, 6]])
  assert found.count == 2


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_hosts_interleave(monkeypatch, count):
  """Three hosts, of which some have fewer images, or none."""
  hosts, rows = 3, np.arange(2.0 * count).reshape(count, 2)
  place, barrier = threading.local(), threading.Barrier(hosts, timeout=60)
  given, found = [None] * hosts, [None] * hosts

  def gather(array):
    barrier.wait()
    given[place.index] = array
    barrier.wait()
    return np.stack(given)

  def run(index):
    place.index = index
    found[index] = join_hosts(Embeddings.of(rows[index::hosts])).rows

  monkeypatch.setattr(jax, "process_count", lambda: hosts)
  gatherer = embeddings.multihost_utils
  monkeypatch.setattr(gatherer, "process_allgather", gather)
  threads = [threading.Thread(target=run, args=[i]) for i in range(hosts)]
  [thread.start() for thread in threads]
  [thread.join() for thread in threads]
  for each in found:
    np.testing.assert_array_equal(each, rows)


@pytest.mark.parametrize(
  ("features", "said"),
  [
    (np.ones(3), r"features are \[3\], expected \[batch, d\]"),
    ([[1.0], [np.inf]], "features have NaN or infinity in row 1, expected"),
  ],
)
def test_bad_features(features, said):
  with pytest.raises(ValueError, match=said):
    Embeddings.of(features)
