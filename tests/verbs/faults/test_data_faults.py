"""A dataset with bad records, and one that gives nothing more."""

import json
import re
import signal
import time

import pytest

from imagen_jax.training.loop import end_sentence

SAVED = 75
# After so many reads of a split, all others hang.
STALLED = """
load = batches.load_source
lock = threading.Lock()
class Source:
  def __init__(self, source):
    self.source, self.left = source, {reads}
  def fingerprint(self):
    return "a stand-in"
  def __len__(self):
    return len(self.source)
  def __getitem__(self, index):
    with lock:
      self.left -= 1
      hangs = self.left < 0
    while hangs:
      time.sleep(1000)
    return self.source[index]
def stand_in(name, split, folder, **_):
  first = split if isinstance(split, str) else split[0]
  found = load(name, split, folder)
  return Source(found) if first == {split!r} else found
batches.load_source = stand_in
"""


def test_bad_records_are_counted_and_told_of(training, tmp_path):
  run = training.start(
    tmp_path, "--config.train.steps=6", "--config.data.max_bad_share=0.5",
    script=training.bad.format(every=5),
  )  # fmt: skip
  out = run.end(0)
  assert run.err == ""
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  count = json.loads(lines[-1])["bad_records"]
  assert 2 <= count <= 30, count
  pattern = (
    r"^(\d+) of (\d+) records read are bad, a share of 0\.\d+, such as record "
    r"\d*[05]: caption is empty; record \d*[05]: caption is empty"
  )
  told = [int(bad) for bad, _ in re.findall(pattern, out, re.M)]
  assert told == sorted(set(told)) and told[-1] == count, out


def test_too_many_bad_records_end_the_run(training, tmp_path):
  run = training.start(
    tmp_path,
    "--config.data.max_bad_share=0.1",
    script=training.bad.format(every=2),
  )
  run.end(1)
  assert re.fullmatch(
    r"error: \d+ of \d+ records read are bad, a share of 0\.\d+, more than the "
    r"0\.1 that max_bad_share allows; the first is record \d+: caption is "
    r"empty\n",
    run.err,
  ), run.err


@pytest.mark.parametrize(
  ("split", "reads"), [("train", 80), ("test", 0)], ids=["train", "first"]
)
def test_a_source_that_hangs_ends_the_run(training, tmp_path, split, reads):
  run = training.start(
    tmp_path, "--config.data.patience=3",
    script=STALLED.format(split=split, reads=reads),
  )  # fmt: skip
  if reads:
    run.until("train 2/")
  run.end(1)
  said = (
    r"error: no record was read for \d s, expected one within patience, 3 s\n"
  )
  assert re.fullmatch(said, run.err), run.err


def test_asked_to_end_while_the_source_hangs(training, undisturbed, tmp_path):
  run = training.start(
    tmp_path, "--config.train.checkpoint_every=100",
    script=STALLED.format(split="train", reads=80),
  )  # fmt: skip
  run.until("train 2/")
  seen = -1
  while seen != (seen := len(run.out)):  # until it hangs
    time.sleep(1)
  run.send(signal.SIGTERM)
  last = run.end(SAVED).splitlines()[-1]
  assert run.err == ""
  (step,) = training.steps(tmp_path)
  told = end_sentence(step, str(tmp_path), interrupted=True)
  assert last == told
  training.check_same(tmp_path, undisturbed, step)


def test_asked_to_end_before_the_first_batch(training, tmp_path):
  run = training.start(tmp_path, script=STALLED.format(split="train", reads=0))
  run.until("compiling")
  run.send(signal.SIGTERM)
  out = run.end(SAVED)
  assert out.splitlines()[-1] == "asked to end before the first step"
  assert (run.err, training.steps(tmp_path)) == ("", [])
