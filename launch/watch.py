"""Keeps a job on a TPU that can be taken away: `launch/tpu_vm.sh watch`.

It looks at the queued resource again and again. A TPU that was preempted is
deleted and requested again, set up and given the command, which resumes.
"""

import re
import sys
import time

import launcher

PROGRAM = "launch/tpu_vm.sh watch"
ABSENT = "ABSENT"  # no such queued resource
LOST = ("SUSPENDED", "FAILED", "PREEMPTED", "TERMINATED", "STOPPED", ABSENT)
RESUME = (75, 76)  # asked to end; another process was lost
KILLED = 128  # codes from here are signals: a host's end shows so too
LONGEST = 900  # seconds between two tries, at most
RUNNING, NOTHING = "running", "nothing"


def log(text: str) -> None:
  """Prints a line with the time."""
  print(f"{time.strftime('%F %T')} {text}", flush=True)


def verdict(lines: str) -> str | int:
  """Returns RUNNING, NOTHING, or the exit code that counts.

  Args:
    lines: what worker.sh status prints on every worker.

  Returns:
    RUNNING if a worker's command runs. NOTHING if none has ended and none runs,
    as after a reboot. Else a mistake's code, if one worker has such; then 75 or
    76; then a signal's; then 0.
  """
  if re.search(r"^\S+: running, ", lines, re.MULTILINE):
    return RUNNING
  ends = re.findall(
    r"^\S+: not running; (?:ended with exit code (\d+); )?",
    lines,
    re.MULTILINE,
  )
  codes = {int(code) for code in ends if code}
  if not codes:
    return NOTHING
  mistakes = [c for c in codes if c and c < KILLED and c not in RESUME]
  again = [c for c in codes if c in RESUME]
  # A worker that prints no code was rebooted: the job has lost it.
  lost = [RESUME[1]] if "" in ends else []
  return (sorted(mistakes) or sorted(again) or lost or sorted(codes)[::-1])[0]


class Watch:
  """Holds what a watch has done so far.

  Attributes:
    restarts: how often it has started the job again or asked for another TPU.
    in_a_row: how many of those since the job was last seen running.
    wait: seconds until the next look.
    started: whether the job on this TPU is this watch's to judge.
  """

  def __init__(self, tpu, every: int, max_restarts: int):
    self.tpu, self.every, self.wait = tpu, every, every
    self.max_restarts = max_restarts
    self.restarts, self.in_a_row = 0, 0
    self.started, self.packed = False, False
    self.last = ""

  def tell(self, text: str) -> None:
    """Logs what is new."""
    if text != self.last:
      log(text)
    self.last = text

  def again(self, reason: str) -> bool:
    """Counts a restart; False if there were too many."""
    if self.restarts >= self.max_restarts:
      log(f"{reason}; ending after {self.restarts} restarts (--max_restarts)")
      return False
    self.restarts += 1
    self.in_a_row += 1
    self.last = ""
    log(f"{reason}; restart {self.restarts} of {self.max_restarts}")
    # Before the next look and not before the restart, which acts on this one.
    longer = self.every * 2 ** min(self.in_a_row - 1, 20)
    self.wait = max(self.every, min(longer, LONGEST))
    return True

  def next_wait(self) -> float:
    """Returns the seconds until the next look."""
    wait, self.wait = self.wait, self.every
    return wait

  def start(self) -> None:
    """Sets the TPU up and starts the job, with what was packed first."""
    if not self.packed:
      self.tpu.pack()
      self.packed = True
    log("the TPU is ready; setting it up")
    self.tpu.install()
    log("starting the command on every worker")
    self.tpu.start(replace=True)
    self.started = True

  def look_at_job(self) -> int | None:
    """Acts on what the workers do; returns an exit code at the end."""
    try:
      found = verdict(self.tpu.jobs())
    except launcher.CommandError:
      if self.started:  # its state shows more at the next look
        self.tell("the workers do not answer")
        return None
      found = NOTHING  # nothing is installed there yet
    if found == RUNNING:
      self.tell("the command is running")
      self.started, self.in_a_row = True, 0
    elif not self.started:
      self.start()
    elif found == NOTHING or found in RESUME:
      said = "is gone" if found == NOTHING else f"ended with exit code {found}"
      if not self.again(f"the command {said}"):
        return 1
      self.tpu.start(replace=True)
    else:
      log(f"the command ended with exit code {found}")
      return found
    return None

  def replace_tpu(self, state: str) -> int | None:
    """Asks for a TPU in the place of one that is lost or was never there."""
    lost = self.started or state != ABSENT
    if lost and not self.again(f"the TPU is {state}"):
      return 1
    self.started = False
    if state != ABSENT:
      log("giving the queued resource back")
      self.tpu.give_back()
    log("asking for a TPU")
    self.tpu.create()
    return None

  def look(self) -> int | None:
    """Looks once and acts; returns an exit code at the end."""
    try:
      state = self.tpu.state()
    except launcher.CommandError:  # the job runs without this machine
      self.tell("gcloud does not answer")
      return None
    if state in LOST:
      return self.replace_tpu(state)
    if state == "READY":
      return self.look_at_job()
    self.tell(f"the TPU is {state or 'in an unknown state'}; waiting")
    return None


def run(tpu, every: int, max_restarts: int, sleep=time.sleep) -> int:
  """Watches until the command ends; returns its exit code.

  Args:
    tpu: a tpu_vm.Tpu.
    every: seconds between two looks.
    max_restarts: how often to start again, at most.
    sleep: waits a number of seconds.

  Returns:
    The command's exit code, or 1 after too many restarts.

  Raises:
    CommandError: the first look of all failed, as without permission.
  """
  if tpu.args.dry_run:
    for step in (tpu.state, tpu.give_back, tpu.create, tpu.pack, tpu.install):
      step()
    tpu.start(replace=True)
    tpu.jobs()
    return 0
  tpu.state()  # what cannot work at all ends here
  watch = Watch(tpu, every, max_restarts)
  try:
    while True:
      try:
        code = watch.look()
      except launcher.CommandError as error:
        code = None if watch.again(f"gcloud failed ({error})") else 1
      if code is not None:
        return code
      sleep(watch.next_wait())
  except KeyboardInterrupt:
    print(
      f"{PROGRAM}: no longer watching; the command and the TPU are left as "
      "they are, and the same command watches again",
      file=sys.stderr,
    )
    return 130
