"""metrics.jsonl and TensorBoard's files."""

import contextlib
import io
import json
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)
from tensorboard.backend.event_processing.event_file_loader import (
  EventFileLoader,
)
from tensorboard.util.tensor_util import make_ndarray

from imagen_jax.training import metric_files
from imagen_jax.training.metrics import FILE, Metrics, memory

ROOT = pathlib.Path(__file__).parents[2]


def rows(workdir):
  return [json.loads(x) for x in (workdir / FILE).read_text().splitlines()]


def write(workdir, first, *steps, **options):
  metrics = Metrics(str(workdir), first, **options)
  for step in steps:
    metrics.write(step, {"loss": step / 2, "bad": float("nan")})
  metrics.write_image(steps[-1], "samples", np.zeros((4, 4, 3), np.uint8))
  metrics.close()


def test_a_line_for_every_step(tmp_path):
  write(tmp_path, 0, 1, 2)
  assert rows(tmp_path) == [
    {"step": 1, "loss": 0.5, "bad": None},
    {"step": 2, "loss": 1.0, "bad": None},
  ]


def test_tensorboard_reads_scalars_and_images(tmp_path):
  image = np.random.default_rng(0).integers(0, 255, (4, 6, 3)).astype(np.uint8)
  metrics = Metrics(str(tmp_path), 0)
  for step in (1, 2):
    metrics.write(step, {"loss": step / 2, "skipped": step})
  metrics.write_image(2, "samples", image)
  metrics.close()
  board = EventAccumulator(str(tmp_path)).Reload()
  plugin = lambda tag: board.SummaryMetadata(tag).plugin_data.plugin_name
  tags = board.Tags()["tensors"]
  assert {tag: plugin(tag) for tag in tags} == {
    "loss": "scalars", "skipped": "scalars", "samples": "images",
  }  # fmt: skip
  values = lambda tag: [
    (event.step, make_ndarray(event.tensor_proto))
    for event in board.Tensors(tag)
  ]
  assert values("loss") == [(1, 0.5), (2, 1.0)]
  assert values("skipped") == [(1, 1.0), (2, 2.0)]
  ((step, (width, height, png)),) = values("samples")
  assert (step, width, height) == (2, b"6", b"4")
  np.testing.assert_array_equal(Image.open(io.BytesIO(png)), image)


def test_a_large_event_file_is_followed_by_another(tmp_path, monkeypatch):
  monkeypatch.setattr(metric_files, "_MAX_BYTES", 100)
  monkeypatch.setattr(metric_files.time, "time", lambda: 1.0)
  write(tmp_path, 0, 1, 2, 3)
  files = sorted(tmp_path.glob("events.out.tfevents.*"))
  steps = [[x.step for x in EventFileLoader(str(f)).Load()] for f in files]
  assert steps == [[0, 1], [0, 2], [0, 3], [0, 3]]


def test_lines_that_will_come_again_are_dropped(tmp_path):
  """Those after the step that a run resumes from, and a torn one."""
  write(tmp_path, 0, 1, 2, 3, 4)
  with (tmp_path / FILE).open("a") as file:
    file.write('{"step": 2, "lo')
  write(tmp_path, 2, 3)
  assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


SOUND = [b'{"step": %d, "loss": 0.5}\n' % step for step in (1, 2, 3)]
GARBAGE = [
  b"garbage\n",
  b'{"st{"step": 2, "loss": 0.5}\n',
  b"[" * 200_000 + b"\n",
  b'{"loss": 0.5}\n',
  b"[1]\n",
  b'{"step": "two"}\n',
  b'{"step": true}\n',
  b"\xff\xfe\x00\n",
  b"\n",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_damaged_file_is_kept_aside_and_its_sound_lines(
  tmp_path, garbage, place
):
  lines = SOUND[:]
  lines.insert(place, garbage)
  (tmp_path / FILE).write_bytes(b"".join(lines))
  said = []
  write(tmp_path, 2, 3, log=said.append)
  assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
  aside = tmp_path / f"{FILE}.damaged"
  assert aside.read_bytes() == b"".join(lines)
  assert said == [
    f"{tmp_path / FILE} has 1 line(s) that are no metrics; it is renamed "
    f"{aside.name}, and its 2 valid line(s) are kept"
  ]


@pytest.mark.parametrize(
  "content", [b"a" * 99, b"a\n" * 99, b"[" * 200_000, b"\0" * 99, b"{"],
  ids=["line", "lines", "nested", "zeros", "torn"],
)  # fmt: skip
def test_a_file_of_somebody_else_is_moved_aside(tmp_path, content):
  for place in (FILE, f"{FILE}.damaged"):
    (tmp_path / place).write_bytes(content)
  said = []
  write(tmp_path, 0, 1, log=said.append)
  assert [row["step"] for row in rows(tmp_path)] == [1]
  if content == b"{":  # as a run leaves it that is killed while it writes
    assert said == []
    return
  assert len(said) == 1 and f"is renamed {FILE}.damaged-2, and its 0" in said[0]
  for place in (f"{FILE}.damaged", f"{FILE}.damaged-2"):
    assert (tmp_path / place).read_bytes() == content


@pytest.mark.parametrize("kind", ["link", "broken link", "folder", "pipe"])
def test_what_is_no_file_of_the_runs_own_is_refused(tmp_path, kind):
  other, path = tmp_path / "other", tmp_path / "run" / FILE
  path.parent.mkdir()
  if kind == "folder":
    path.mkdir()
  elif kind == "pipe":
    os.mkfifo(path)
  else:
    path.symlink_to(other)
  if kind == "link":
    other.write_bytes(SOUND[0])
  with pytest.raises(
    ValueError, match=f"^{path} is a link, folder or device, "
  ):
    Metrics(str(path.parent), 0)
  assert os.path.lexists(path)
  assert not other.exists() or other.read_bytes() == SOUND[0]


def test_a_file_with_another_name_is_left_alone(tmp_path):
  """A hard link: the run continues in a copy."""
  other, workdir = tmp_path / "other", tmp_path / "run"
  other.write_bytes(b"".join(SOUND))
  workdir.mkdir()
  os.link(other, workdir / FILE)
  write(workdir, 3, 4)
  assert [row["step"] for row in rows(workdir)] == [1, 2, 3, 4]
  assert other.read_bytes() == b"".join(SOUND)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_no_link_is_followed_that_comes_later(tmp_path, kind):
  """Instead of metrics.jsonl or of an event file."""
  other, said = tmp_path / "other", []
  other.write_text("theirs")
  workdir = tmp_path / "run"
  workdir.mkdir()
  metrics = Metrics(str(workdir), 0, log=said.append)
  metrics.write(1, {"loss": 1.0})
  metrics._pool.submit(int).result()
  for path in list(workdir.iterdir()):
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(other)
  metrics.write(2, {"loss": 1.0})
  metrics.close()
  assert other.read_text() == "theirs"
  assert len(said) == 1 and said[0].startswith("metrics cannot be written from")


def test_what_is_cut_while_it_runs_goes_on_whole(tmp_path):
  metrics = Metrics(str(tmp_path), 0)
  metrics.write(1, {"loss": 1.0})
  (tmp_path / FILE).unlink()
  metrics.write(2, {"loss": 1.0})
  metrics.close()
  assert [row["step"] for row in rows(tmp_path)] == [2]


def test_one_of_many_processes_writes(tmp_path):
  write(tmp_path, 0, 1)
  write(tmp_path, 0, 1, 2, quiet=True)
  assert [row["step"] for row in rows(tmp_path)] == [1]


class Disk:
  """Metrics where no more can be written, and then again it can."""

  def __init__(self, workdir: str, fill, free):
    self.workdir, self.said = workdir, []
    self.metrics = Metrics(workdir, 0, log=self.said.append)
    self.write(1, 2)
    fill()
    self.write(3, 4, 5)
    free()
    self.write(6, 7)
    self.metrics.close()

  def write(self, *steps):
    for step in steps:
      # More than a page of memory, which a full disk may have left.
      numbers = {f"part{i}": step / 2 for i in range(500)}
      self.metrics.write(step, numbers)
      picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
      self.metrics.write_image(step, "samples", picture.astype(np.uint8))
      self.metrics._pool.submit(int).result()  # waits for what came before

  def check(self, why: str):
    assert self.said == [
      f"metrics cannot be written from step 3 on, {self.workdir}/{FILE}: "
      f"{why}; training continues without",
      "metrics are written again, from step 6 on",
    ]
    folder = pathlib.Path(self.workdir)
    assert [row["step"] for row in rows(folder)] == [1, 2, 6, 7]
    shown = set()
    for path in folder.glob("events.out.tfevents.*"):
      shown |= {event.step for event in EventFileLoader(str(path)).Load()}
    assert shown >= {1, 2, 6, 7} and not shown & {3, 4, 5}, shown


def test_a_record_that_is_torn_is_cut_away(tmp_path):
  file = metric_files.AppendFile(epath.Path(tmp_path / "records"))
  file.append(b"a" * 100)
  none = resource.RLIM_INFINITY
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, none))
    with pytest.raises(OSError, match="File too large"):
      file.append(b"b" * 100)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (none, none))
  assert file.path.read_bytes() == b"a" * 100
  file.append(b"c")
  assert file.path.read_bytes() == b"a" * 100 + b"c"


def test_files_that_cannot_grow(tmp_path):
  none = resource.RLIM_INFINITY
  limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, none))
  try:
    disk = Disk(str(tmp_path), lambda: limit(2000), lambda: limit(none))
  finally:
    limit(none)
  disk.check("File too large")


def on_a_full_disk(workdir: str) -> None:
  path = pathlib.Path(workdir) / "rest"

  def fill():
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
      while True:
        file.write(bytes(1000))

  Disk(workdir, fill, path.unlink).check("No space left on device")


def test_a_full_disk(tmp_path):
  mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec "
  mounted = ["unshare", "-rm", "sh", "-c", mount + '"$0" "$@"']
  if subprocess.run([*mounted, "true"], check=False).returncode:
    pytest.skip("this machine lets nobody mount a file system")
  script = "import runpy, sys; runpy.run_path(sys.argv[1])[sys.argv[2]]"
  command = [sys.executable, "-c", f"{script}(sys.argv[3])", __file__]
  done = subprocess.run(
    [*mounted, *command, "on_a_full_disk", str(tmp_path)],
    cwd=ROOT, capture_output=True, encoding="utf-8",
  )  # fmt: skip
  assert (done.returncode, done.stderr) == (0, "")


def test_memory_is_of_this_process():
  before = memory()["host_gib"]
  block = np.ones(2**27, np.uint8)  # an eighth of a GiB
  assert 0.05 < before < 64
  assert memory()["host_gib"] >= max(before, block.nbytes / 2**30)
