"""One process of train, asked to end or given what it cannot learn from."""

import json
import pathlib
import re
import shlex
import shutil
import signal
import subprocess

import jax
import numpy as np
import pytest

from imagen_jax.training.loop import end_sentence

SAVED, STEPS = 75, 16


def rows(workdir) -> list[dict]:
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


# However slow the test is, the signal comes before the run's end.
WAITS = """
write = loop.Outputs.write
def waits(self, step, *args):
  write(self, step, *args)
  while step == 3 and not self.job.preemption.asked():
    time.sleep(0.01)
loop.Outputs.write = waits
"""


@pytest.mark.parametrize(
  "sent",
  [
    signal.SIGTERM,
    pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
  ],
)
def test_a_signal_saves_and_the_next_run_goes_on(
  training, undisturbed, tmp_path, sent
):
  run = training.start(tmp_path, script=WAITS)
  run.until("train 3/")
  run.send(sent)
  out = run.end(SAVED)
  assert run.err == ""
  step = training.steps(tmp_path)[-1]
  assert out.splitlines()[-1] == (
    end_sentence(step, str(tmp_path), interrupted=True)
  )
  assert step in (3, 4)
  training.check_same(tmp_path, undisturbed, step)
  if sent != signal.SIGTERM:
    return  # the rest is the same

  end = min(step + 2, STEPS)
  run = training.start(tmp_path, f"--config.train.steps={end}")
  assert f"resumed from step {step}\n" in run.end(0)
  training.check_same(tmp_path, undisturbed, end)
  assert [row["step"] for row in rows(tmp_path)] == [*range(1, end + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["| head -n 1", ">&-", ">/dev/full"])
def test_output_that_nobody_reads_ends_no_run(training, tmp_path, ending):
  flags = training.flags(tmp_path, "--config.train.steps=4")
  command = [training.python, "-m", "imagen_jax.train", *flags]
  script = f"{shlex.join(command)} {ending}; exit ${{PIPESTATUS[0]}}"
  run = training.run(["bash", "-c", script])
  run.end(0)
  assert run.err == ""
  assert training.steps(tmp_path) == [1, 2, 3, 4]
  assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]


SLOW_SAVE = """
save = loop.Checkpoints.save
def slow(self, step, *args):
  save(self, step, *args)
  if step != 2:
    print("saving", step, flush=True)
    time.sleep(3600)
loop.Checkpoints.save = slow
"""


@pytest.mark.parametrize(
  ("sent", "code"),
  [
    (signal.SIGTERM, -signal.SIGTERM),
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
  ],
)
def test_a_second_signal_ends_at_once(
  training, undisturbed, tmp_path, sent, code
):
  rare = "--config.train.checkpoint_every=2"
  run = training.start(tmp_path, rare, script=SLOW_SAVE)
  run.until("train 3/")
  run.send(sent)
  run.until("saving")
  run.send(sent)
  run.end(code)
  assert run.err == ("error: interrupted\n" if code > 0 else "")
  if sent == signal.SIGTERM:
    return  # the rest is the same

  run = training.start(tmp_path, rare, "--config.train.steps=5")
  assert "resumed from step " in run.end(0)
  assert run.err == ""
  training.check_same(tmp_path, undisturbed, 5)


POISON = """
make = batches.make_batches
def poisoned(*args, start_step=0, **options):
  batches = make(*args, start_step=start_step, **options)
  for step, batch in enumerate(batches, start_step + 1):
    if step in {steps}:
      batch["image"][0, 0, 0, 0] = np.nan
    yield batch
batches.make_batches = poisoned
"""


def test_a_nan_is_skipped_and_counted(training, undisturbed, tmp_path):
  script = POISON.format(steps={3, 5, 6})
  run = training.start(
    tmp_path, "--config.train.steps=8", "--config.train.max_skipped=3",
    script=script,
  )  # fmt: skip
  out = run.end(0)
  assert run.err == ""
  told = "skipped 1 step(s) without a finite loss or gradient: "
  found = [line for line in out.splitlines() if line.startswith("skipped")]
  assert found == [told + "3", told + "5", told + "6"]
  assert [row["skipped_steps"] for row in rows(tmp_path)] == [
    0, 0, 1, 1, 2, 3, 3, 3
  ]  # fmt: skip
  training.check_same(tmp_path, undisturbed, 2)
  states = {step: training.state(tmp_path, step) for step in range(2, 9)}
  for part in ("params", "ema", "opt_state"):
    of = {step: jax.tree.leaves(state[part]) for step, state in states.items()}
    assert all(np.isfinite(x).all() for leaves in of.values() for x in leaves)
    for before, after, same in (
      (2, 3, True), (3, 4, False), (4, 5, True), (5, 6, True), (6, 7, False)
    ):  # fmt: skip
      equal = map(np.array_equal, of[before], of[after])
      assert all(equal) == same, (part, before, after)


def test_too_many_nans_in_a_row_end_the_run(training, undisturbed, tmp_path):
  script = POISON.format(steps=range(5, 1000))
  run = training.start(
    tmp_path, "--config.train.max_skipped=2",
    "--config.train.checkpoint_every=4", script=script,
  )  # fmt: skip
  run.end(1)
  assert run.err == (
    "error: the loss or its gradient was not finite in 2 steps in a row, from "
    "step 5 on, expected fewer than max_skipped, 2; these steps changed "
    "nothing\n"
  )
  assert training.steps(tmp_path) == [4]
  training.check_same(tmp_path, undisturbed, 4)


def in_tmpfs(workdir, copy) -> list[str]:
  """What runs a command with 3 MB of space at workdir, and copies that."""
  script = (
    f"mount -t tmpfs -o size=3m tmpfs {workdir} || exit; "
    f'"$0" "$@"; code=$?; cp -r {workdir} {copy}; exit $code'
  )
  return ["unshare", "-rm", "sh", "-c", script]


# After step 4 not a block is free, after step 9 some, too few for a checkpoint.
# What a save left half written is gone before the next step, and none is under
# way while TensorBoard's numbers are written.
FILLED = """
import contextlib, os
save = loop.Checkpoints.save
def filled(self, step, *args):
  save(self, step, *args)
  path = os.path.join(self._directory.parent, "rest")
  if step >= 4:
    with contextlib.suppress(ValueError):
      self.wait()
  if step == 4:
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
      while True:
        file.write(bytes(100))
  if step == 9:
    os.truncate(path, os.path.getsize(path) - 60_000)
loop.Checkpoints.save = filled
write = loop.Metrics.write
def written(self, *args):
  write(self, *args)
  self._pool.submit(int).result()  # the next in its one thread
loop.Metrics.write = written
"""


@pytest.mark.slow
def test_a_full_disk(training, undisturbed, tmp_path):
  workdir, copy = tmp_path / "run", tmp_path / "copy"
  workdir.mkdir()
  trial = [*in_tmpfs(workdir, tmp_path / "trial"), "true"]
  if subprocess.run(trial, check=False).returncode:
    pytest.skip("this machine lets nobody mount a file system")
  command = [training.python, *training.replaced(FILLED)]
  command += training.flags(workdir, "--config.train.steps=12")
  run = training.run([*in_tmpfs(workdir, copy), *command])
  out = run.end(1)
  lost = f"checkpoint {workdir}/checkpoints/{{}} could not be saved: "
  lost += "No space left on device"
  assert run.err == f"error: {lost.format(12)}\n"
  saved = training.steps(copy)
  assert saved == [1, 2, 3, 4][: len(saved)] and saved
  told = [line for line in out.splitlines() if "could not be saved" in line]
  assert told == [lost.format(step) for step in range(saved[-1] + 1, 13)]
  assert "train 12/12 " in out  # it trained on
  # Some lines may have fitted into the last block; all of them are whole.
  kept = [row["step"] for row in rows(copy)]
  assert kept == sorted({*kept, 1, 2, 3, 4, 10, 11, 12})
  first, again = (x for x in out.splitlines() if x.startswith("metrics"))
  assert re.fullmatch(
    rf"metrics cannot be written from step [5-9] on, {workdir}(/metrics.jsonl)?"
    ": No space left on device; training continues without", first
  ), first  # fmt: skip
  assert again == "metrics are written again, from step 10 on"
  for step in saved:
    training.check_same(copy, undisturbed, step)

  # And with space again:
  run = training.start(copy, "--config.train.steps=5")
  assert f"resumed from step {saved[-1]}\n" in run.end(0)
  training.check_same(copy, undisturbed, 5)


def truncate(state: pathlib.Path) -> None:
  for path in (state / "ocdbt.process_0" / "d").iterdir():
    path.write_bytes(path.read_bytes()[:20])


def delete(state: pathlib.Path) -> None:
  (state / "manifest.ocdbt").unlink()


def flip(state: pathlib.Path) -> None:
  """The last bit of a file that holds numbers."""
  path = max(state.rglob("d/*"), key=lambda path: path.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def test_damaged_checkpoints_give_way_to_the_one_before(
  training, undisturbed, tmp_path
):
  for step in range(2, 6):
    name = f"checkpoints/{step}"
    shutil.copytree(undisturbed / name, tmp_path / name)
  for step, damage in ((3, truncate), (4, delete), (5, flip)):
    damage(tmp_path / "checkpoints" / str(step) / "state")
  run = training.start(tmp_path, "--config.train.steps=6")
  out = run.end(0)
  assert run.err == ""
  path = re.escape(f"{tmp_path}/checkpoints")
  told = re.findall(
    rf"^checkpoint {path}/(\d) is damaged \(.+\); it is renamed \1\.damaged, "
    r"and step 2 taken$", out, re.M
  )  # fmt: skip
  assert sorted(told) == ["3", "4", "5"], out
  assert "\nresumed from step 2\n" in out
  for step in (3, 4, 5, 6):
    training.check_same(tmp_path, undisturbed, step)


@pytest.mark.slow
def test_another_config_is_refused_unless_told(training, undisturbed, tmp_path):
  shutil.copytree(undisturbed / "checkpoints/3", tmp_path / "checkpoints/3")
  other = ("--config.optimizer.clip_norm=0.5", "--config.train.steps=4")
  run = training.start(tmp_path, *other)
  run.end(1)
  path = f"{tmp_path}/checkpoints/3"
  assert run.err.startswith(f"error: checkpoint {path} is of another config: ")
  assert "optimizer.clip_norm" in run.err and run.err.count("\n") == 1
  assert training.steps(tmp_path) == [3]
  run = training.start(tmp_path, *other, "--allow_config_change")
  out = run.end(0)
  assert "optimizer.clip_norm" in out and "resumed from step 3\n" in out
  assert training.steps(tmp_path) == [3, 4]
