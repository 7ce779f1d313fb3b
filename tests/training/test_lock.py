"""One writer for a workdir, on a disk and on the stand-in for gs://."""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest

from imagen_jax.training import lock
from imagen_jax.training.lock import FILE, one_writer

WHO = (
  rf"process {os.getpid()} of user \S+ on host \S+ since 20[-\d]+ [:\d]+ UTC"
)
NO_NAME = "a process that gives no name"


@pytest.fixture
def said():
  return []


def test_a_second_writer_is_refused_and_told_who_is_first(tmp_path, said):
  workdir = str(tmp_path / "run")
  with one_writer(workdir, said.append) as writer:
    writer.check(1)
    with (
      pytest.raises(
        ValueError, match=f"^workdir {workdir} is held by {WHO}, e"
      ),
      one_writer(workdir, said.append),
    ):
      pass
    writer.check(2)
  with one_writer(workdir, said.append) as writer:
    writer.check(3)
  assert said == []


def test_it_leaves_nothing_behind(tmp_path, said):
  """Not a folder that it made, nor one file in a folder that is used."""
  workdir = tmp_path / "new" / "run"
  with one_writer(str(workdir), said.append):
    assert (workdir / FILE).exists()
  assert list(tmp_path.iterdir()) == []
  with one_writer(str(workdir), said.append):
    (workdir / "kept").touch()
  assert [path.name for path in workdir.iterdir()] == ["kept"]


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print(flush=True)
time.sleep(600)
"""


def test_kill_9_frees_it(tmp_path, said):
  """The file stays; the kernel has ended the lock."""
  command = [sys.executable, "-c", HOLD, str(tmp_path / FILE)]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    with (
      pytest.raises(ValueError, match=f"is held by {NO_NAME}, expected one"),
      one_writer(str(tmp_path), said.append),
    ):
      pass
    process.kill()
  assert (tmp_path / FILE).exists()
  with one_writer(str(tmp_path), said.append):
    assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("kind", ["link", "broken link", "pipe", "folder"])
def test_what_is_no_file_of_ours_is_refused_and_kept(tmp_path, said, kind):
  workdir, other = tmp_path / "run", tmp_path / "other"
  workdir.mkdir()
  if kind == "pipe":
    os.mkfifo(workdir / FILE)
  elif kind == "folder":
    (workdir / FILE).mkdir()
  else:
    (workdir / FILE).symlink_to(other)
    if kind == "link":
      other.write_text("theirs")
  with (
    pytest.raises(ValueError, match=f"^workdir {workdir} cannot be written: "),
    one_writer(str(workdir), said.append),
  ):
    pass
  assert os.path.lexists(workdir / FILE)
  assert not other.exists() or other.read_text() == "theirs"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_without(
  tmp_path, said, monkeypatch, code
):
  def refuse(*_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(fcntl, "flock", refuse)
  with one_writer(str(tmp_path), said.append) as writer:
    writer.check(1)
  (line,) = said
  assert re.match(f"workdir {tmp_path} is on a file system without locks", line)


def test_a_store_without_locks_is_used_without(said):
  with one_writer("s3://bucket/run", said.append) as writer:
    writer.check(1)
  assert len(said) == 1 and "in a store without locks" in said[0]


@pytest.mark.parametrize("folder", ["/sys", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_is_found_at_once(said, folder):
  with (
    pytest.raises(ValueError, match=f"^workdir {folder} cannot be written: "),
    one_writer(folder, said.append),
  ):
    pass


def test_a_workdir_that_is_deleted_is_made_again_and_said(tmp_path, said):
  workdir = tmp_path / "run"
  with one_writer(str(workdir), said.append) as writer:
    (workdir / FILE).unlink()  # a user tidied up: no word is needed
    writer.check(1)
    assert (workdir / FILE).exists() and said == []
    workdir.rename(tmp_path / "gone")
    writer.check(2)
    assert (workdir / FILE).exists()
    writer.check(3)
  assert said == [
    f"workdir {workdir} was deleted while the run wrote there; it is made "
    "again, without what it held before step 2"
  ]


def test_a_workdir_that_another_took_is_left_to_it(tmp_path, said):
  workdir = tmp_path / "run"
  with one_writer(str(workdir), said.append) as first:
    shutil.rmtree(workdir)
    with one_writer(str(workdir), said.append) as second:
      with pytest.raises(
        ValueError, match=f"taken by another run, {WHO}; this"
      ):
        first.check(7)
      second.check(8)
  assert said == []


@pytest.mark.parametrize(
  "holder", [b"", b"{", b"[" * 200_000, b"[1]", b'{"host": 1}', b"\xff\xfe"]
)
def test_a_holder_that_is_garbage_has_no_name(holder):
  assert str(lock.Held(holder)) == NO_NAME


def test_a_holder_is_named_in_one_short_line():
  about = {key: "\x1b[31m\n" * 1000 for key in ("host", "pid", "user", "since")}
  named = str(lock.Held(json.dumps(about).encode()))
  assert len(named) < 300 and named.isprintable()


def test_all_processes_learn_what_the_first_found(tmp_path, said, monkeypatch):
  """As the second of two, which never looks itself."""
  sentences = []

  def gather_host_stats(numbers, words):
    sentences.append(words)
    return np.array([[lock._REFUSED], numbers]), ["held, says the first", words]

  monkeypatch.setattr(lock, "gather_host_stats", gather_host_stats)
  monkeypatch.setattr(lock.jax, "process_index", lambda: 1)
  with (
    pytest.raises(ValueError, match="^held, says the first$"),
    one_writer(str(tmp_path / "run"), said.append),
  ):
    pass
  assert sentences == [""] and list(tmp_path.iterdir()) == []


@pytest.fixture
def bucket(storage, monkeypatch):
  """The objects of a bucket, and locks that do not take long."""
  for name, value in storage.env.items():
    monkeypatch.setenv(name, value)
  store = fsspec.filesystem("gcs", token="anon", skip_instance_cache=True)
  monkeypatch.setattr(lock.fsspec, "filesystem", lambda name: store)
  monkeypatch.setattr(lock, "RENEW", 0.02)
  monkeypatch.setattr(lock, "LOST", 60.0)
  monkeypatch.setattr(lock, "_POLL", 0.05)
  storage.buckets["locks"] = {}
  yield storage.buckets["locks"]
  del storage.buckets["locks"]


WORKDIR = "gs://locks/run"
KEY = f"run/{FILE}"


def test_on_gs_it_is_renewed_and_removed(bucket, said):
  with one_writer(WORKDIR, said.append) as writer:
    first = bucket[KEY].generation
    while bucket[KEY].generation < first + 3:
      time.sleep(0.01)
    writer.check(1)
    before = said[:]
  assert bucket == {} and before == said == []


def test_on_gs_a_second_writer_is_refused_by_a_sign_of_life(bucket, said):
  with (
    one_writer(WORKDIR, said.append) as first,
    pytest.raises(
      ValueError, match=f"^workdir {WORKDIR} is held by {WHO}, exp"
    ),
  ):
    with one_writer(WORKDIR, said.append):
      pass
    first.check(1)
  assert [
    line for line in said if "waiting up to 60 s for a sign" not in line
  ] == []


def test_on_gs_the_lock_of_a_dead_run_is_waited_for(
  bucket, said, storage, monkeypatch
):
  monkeypatch.setattr(lock, "LOST", 0.2)
  holder = {"host": "pod-3", "pid": 7, "user": "me", "since": "noon"}
  storage.put("locks", KEY, json.dumps(holder).encode())
  with one_writer(WORKDIR, said.append) as writer:
    writer.check(1)
    assert json.loads(bucket[KEY].data)["pid"] == os.getpid()
  assert said == [
    f"workdir {WORKDIR} is held by process 7 of user me on host pod-3 since "
    "noon; waiting up to 0 s for a sign of life of that run"
  ]


@pytest.mark.parametrize("gone", [False, True])
def test_on_gs_who_lost_the_lock_ends_and_leaves_it(
  bucket, said, storage, gone
):
  """Also if the other run has come to its end since."""
  with one_writer(WORKDIR, said.append) as writer:
    writer.check(1)
    if gone:
      del bucket[KEY]
    else:
      storage.put("locks", KEY, b"another")
    with pytest.raises(
      ValueError, match=f"taken by another run, {NO_NAME}; .* saving step 2$"
    ):
      writer.check(2)
  assert list(bucket) == ([] if gone else [KEY])


def test_on_gs_of_two_that_take_a_dead_runs_lock_one_gets_it(
  bucket, storage, monkeypatch
):
  monkeypatch.setattr(lock, "LOST", -1.0)
  storage.put("locks", KEY, b"dead")
  first, second = lock.ObjectLock(f"{WORKDIR}/{FILE}"), None
  second = lock.ObjectLock(f"{WORKDIR}/{FILE}")
  read = second._read

  def late():
    found = read()
    first.take()
    return found

  second._store = None
  monkeypatch.setattr(second, "_read", late)
  with pytest.raises(lock.Held):
    second.take()
  assert first.check() is False
  first.release()
  second.release()


def test_on_gs_an_answer_that_is_lost_is_no_loss(bucket, storage, said):
  with one_writer(WORKDIR, said.append) as writer:
    # A renewal that arrived, of which the answer did not.
    storage.put("locks", KEY, bucket[KEY].data)
    writer.check(1)
  assert bucket == {}
