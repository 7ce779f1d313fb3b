"""Large jobs: what is in memory, what is written, and what stays."""

import threading
import weakref

import flax.linen as nn
import jax
import numpy as np
import pytest

from imagen_jax import jobs
from imagen_jax.cascade import Cascade
from imagen_jax.diffusion.gaussian import X
from imagen_jax.diffusion.guidance import NoThreshold
from imagen_jax.imagen import Imagen
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.progress import compilations
from imagen_jax.request import image_rows
from imagen_jax.samples import Samples
from imagen_jax.stage import Sampling, Stage
from imagen_jax.types import TextEmbedding

PROMPTS = {"dark": -0.3, "grey": 0.0, "light": 0.3}


class Net(nn.Module):
  """A net that answers with its text and some of the noise."""

  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    return 0.2 * z + cond.text.tokens[:, 0, 0, None, None, None]


def encode(prompts, rows=None):
  """An encoder whose tokens are a prompt's number."""
  values = np.array([PROMPTS[p] for p in prompts], np.float32)
  tokens = values[:, None, None] * np.ones((1, 2, 5), np.float32)
  return TextEmbedding(tokens, np.ones(tokens.shape[:2], bool))


def make_imagen(log=None):
  log = [] if log is None else log
  plain = Sampling(steps=1, guidance=1.0, threshold=NoThreshold())
  cascade = Cascade(("small",), (Stage(Net(), 4, prediction=X),), (plain,))
  return Imagen(
    cascade,
    load_net=lambda name: log.append(name) or {},
    load_encoder=lambda: log.append("text") or encode,
    devices=make_mesh(devices=jax.devices()[:1]),
    batch_size=2,
  )


def test_points_share_programs_and_have_images_of_their_own(tmp_path):
  """As in a sweep: other numbers compile nothing and read nothing."""
  log = []
  imagen = make_imagen(log)
  found = {}
  for name, guidance in (("a", 2.0), ("b", 3.0), ("c", 2.0)):
    point = (name, [Sampling(steps=2, guidance=guidance)])
    rows = image_rows(1, num_images=2)
    job = jobs.plan(
      imagen, ["light"], rows, tmp_path, point=point, progress=False
    )
    with compilations() as compiled:
      jobs.sample_all(job, name)
    found[name] = job.ids, [jobs.read_image(path) for path in job.paths]
    if name != "a":
      assert (compiled.count, log.count("small")) == (0, 1)
  assert len(list(tmp_path.iterdir())) == 6
  assert len({*found["a"][0], *found["b"][0], *found["c"][0]}) == 6
  np.testing.assert_array_equal(found["a"][1], found["c"][1])
  assert not np.array_equal(found["a"][1], found["b"][1])


def test_only_the_batches_at_work_are_in_memory(tmp_path, monkeypatch):
  """One is written while the next is computed; a finished one is let go."""
  imagen, alive = make_imagen(), []
  write, free = Samples.write, threading.Event()

  def note(self, folder, i):
    assert free.wait(60)
    return write(self, folder, i)

  def look(cascade, request):
    for more, samples in shares(cascade, request):
      alive.append(weakref.ref(samples))
      assert sum(ref() is not None for ref in alive) <= 2
      if len(alive) == 2:
        free.set()  # the second batch was computed before the first was written
      yield more, samples
      del samples

  shares = Imagen.run_share
  monkeypatch.setattr(Samples, "write", note)
  monkeypatch.setattr(Imagen, "run_share", look)
  rows = image_rows(1, num_images=10)
  job = jobs.plan(imagen, ["dark"], rows, tmp_path, progress=False)
  assert sum(more for more, _ in job.run()) == 10
  assert len(list(tmp_path.iterdir())) == 10


def test_an_image_that_cannot_be_written_ends_the_job(tmp_path, monkeypatch):
  """After the batches at work, with the file in the sentence."""
  imagen, batches = make_imagen(), []
  rows = image_rows(1, num_images=10)
  job = jobs.plan(imagen, ["dark"], rows, tmp_path, progress=False)
  job.paths[2].mkdir()  # a folder in place of the second batch's first file
  with pytest.raises(ValueError, match=f"^{job.paths[2]} cannot be written: "):
    batches += job.run()
  assert len(batches) == 2
  written = [path.is_file() for path in job.paths]
  assert written == [True, True, False, True, *[False] * 6]


def test_the_folder_is_listed_once_and_a_listing_may_fail(tmp_path):
  """Only files that are there are opened."""
  imagen = make_imagen()
  rows = image_rows(1, num_images=3)
  (tmp_path / "file").write_bytes(b"")
  with pytest.raises(ValueError, match="/file cannot be read: Not a directory"):
    jobs.plan(imagen, ["dark"], rows, tmp_path / "file", progress=False)
  job = jobs.plan(imagen, ["dark"], rows, tmp_path / "new", progress=False)
  assert job.missing == (0, 1, 2) and not (tmp_path / "new").exists()


def test_a_large_job_encodes_texts_in_rounds(tmp_path, monkeypatch):
  """The encoder leaves memory before the nets come, each time."""
  monkeypatch.setattr("imagen_jax.batches.ROUND", 4)
  log, prompts = [], ["dark", "grey", "light"]
  imagen = make_imagen(log)
  rows = image_rows(3, num_images=2)
  expected = imagen.sample(prompts, num_images=2, progress=False).save(
    tmp_path / "call"
  )
  log.clear()
  imagen.release("text")
  job = jobs.plan(imagen, prompts, rows, tmp_path / "job", progress=False)
  assert job.missing == (0, 1, 2, 3, 4, 5)
  batches = [(more, len(paths)) for more, paths in job.run()]
  assert batches == [(2, 0), (2, 2), (2, 2), (0, 2)]  # written meanwhile
  assert log == ["text", "text"]
  for path, other in zip(job.paths, expected, strict=True):
    assert path.read_bytes() == other.read_bytes()
  again = jobs.plan(imagen, prompts, rows, tmp_path / "job", progress=False)
  assert not again.missing
