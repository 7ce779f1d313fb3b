"""Moments kept in files: any batch size, after kill -9, of other images."""

import jax
import numpy as np
import pytest
from etils import epath

from imagen_jax.evals import statistics
from imagen_jax.evals.embeddings import Embeddings
from imagen_jax.evals.features import Extractor
from imagen_jax.evals.frechet import FeatureStats
from imagen_jax.evals.statistics import ImageSet, image_stats

COUNT = 23


def images(count=COUNT):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)


def features(batch):
  return batch.reshape(len(batch), -1)[:, :5] / 255


SMALL = Extractor("small", features)


@pytest.fixture
def stats(tmp_path, monkeypatch):
  """Calls image_stats with small chunks that are all kept."""
  monkeypatch.setattr(statistics, "CHUNK", 6)
  monkeypatch.setattr(statistics, "KEEP_EVERY", -1.0)

  def stats(
    read=None, name=0, folder="a", extractor=SMALL, batch_size=4, **more
  ):
    read = images().__getitem__ if read is None else read
    made = ImageSet({"of": name}, COUNT, read)
    path = epath.Path(tmp_path / folder)
    return image_stats(
      made, extractor, path, batch_size=batch_size, title="images", **more
    )

  return stats


def check_equal(one, two):
  assert one.count == two.count
  np.testing.assert_array_equal(one.mean, two.mean)
  np.testing.assert_array_equal(one.scatter, two.scatter)


def test_they_are_the_moments_and_do_not_depend_on_the_batch_size(stats):
  found = [stats(folder=str(n), batch_size=n) for n in (1, 4, 7, 100)]
  for each in found[1:]:
    check_equal(found[0], each)
  whole = FeatureStats.of(features(images()))
  np.testing.assert_allclose(found[0].mean, whole.mean, atol=1e-14)
  np.testing.assert_allclose(found[0].scatter, whole.scatter, atol=1e-13)


def test_every_batch_has_one_size(stats):
  sizes = []
  noted = Extractor("noted", lambda x: sizes.append(len(x)) or features(x))
  stats(extractor=noted)
  assert {*sizes} == {4}


def test_a_second_call_reads_no_image(stats, tmp_path):
  first = stats()
  check_equal(first, stats(read=lambda i: 1 / 0))
  assert len(list((tmp_path / "a").iterdir())) == 1


@pytest.mark.parametrize(
  "other",
  [{"name": 1}, {"extractor": Extractor("other", lambda x: features(x) + 1)}],
)
def test_other_images_or_features_have_another_file(stats, tmp_path, other):
  first, second = stats(), stats(**other)
  assert len(list((tmp_path / "a").iterdir())) == 2
  if "extractor" in other:
    np.testing.assert_allclose(second.mean, first.mean + 1)


@pytest.mark.parametrize("last", [5, 6, 17, 21])
def test_an_interrupted_call_resumes_with_equal_bits(stats, tmp_path, last):
  """As after kill -9: what was kept is not read again."""

  def until(i):
    if i > last:
      raise KeyboardInterrupt
    return images()[i]

  with pytest.raises(KeyboardInterrupt):
    stats(read=until)
  kept = (last + 1) // 6 * 6
  read = []
  found = stats(read=lambda i: read.append(i) or images()[i])
  assert sorted(read) == list(range(kept, COUNT))
  check_equal(found, stats(folder="whole"))
  assert len(list((tmp_path / "a").iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04" + bytes(99), None])
def test_a_damaged_file_is_made_again(stats, tmp_path, damage):
  first = stats()
  (path,) = (tmp_path / "a").iterdir()
  data = path.read_bytes()
  path.write_bytes(data[:-50] if damage is None else damage)
  check_equal(first, stats())
  assert path.read_bytes()[:-50] == data[:-50]


def test_embeddings_are_kept_in_order_and_resumed(stats, monkeypatch):
  monkeypatch.setattr(statistics, "MOST_LEFT_OUT", 0.2)
  left_out = lambda i: None if i in (0, 9) else images()[i]

  def until(i):
    if i > 13:
      raise KeyboardInterrupt
    return left_out(i)

  with pytest.raises(KeyboardInterrupt):
    stats(until, kind=Embeddings)
  read = []
  found = stats(lambda i: read.append(i) or left_out(i), kind=Embeddings)
  assert sorted(read) == list(range(12, COUNT))
  expected = features(images()).astype(np.float32)
  expected[[0, 9]] = np.nan
  np.testing.assert_array_equal(found.rows, expected)
  again = stats(lambda i: 1 / 0, kind=Embeddings)
  np.testing.assert_array_equal(again.rows, expected)


def test_images_that_cannot_be_used_are_left_out(stats, monkeypatch):
  monkeypatch.setattr(statistics, "MOST_LEFT_OUT", 0.2)
  read = lambda i: None if i in (0, 9) else images()[i]
  found = stats(read=read)
  assert found.count == COUNT - 2
  rest = features(np.delete(images(), [0, 9], 0))
  np.testing.assert_allclose(found.mean, rest.mean(0), atol=1e-14)


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    (range(6), "none of 6 images can be used"),
    ((7, 8), "images: 2 of 12 images cannot be used, expected at most 1%"),
  ],
)
def test_too_many_of_them_are_an_error(stats, bad, message):
  with pytest.raises(ValueError, match=message):
    stats(read=lambda i: None if i in bad else images()[i])


def test_processes_share_the_images(stats, monkeypatch):
  """Each reads its own; merge_hosts is tested in test_frechet.py."""
  parts, read = [], []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(statistics, "from_first", lambda x: x)
  monkeypatch.setattr(statistics, "merge_hosts", parts.append)
  monkeypatch.setattr(statistics, "_save", lambda *args: None)
  monkeypatch.setattr(
    "imagen_jax.parallel.processes.gather_host_stats",
    lambda numbers, words: (np.array([numbers]), [words]),
  )
  for index in range(2):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    stats(read=lambda i: read.append(i) or images()[i])
  assert sorted(read) == list(range(COUNT))
  assert [part.count for part in parts] == [12, 11]
  second = features(images()[1::2])
  np.testing.assert_allclose(parts[1].mean, second.mean(0), atol=1e-14)
