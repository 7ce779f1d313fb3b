"""launch/tpu_vm.sh watch, with a cloud that takes its TPUs back."""

import subprocess

import pytest

FLAGS = ("--name=n", "--zone=z", "--type=v5e-16", "--spot", "--every=60")
EXTRAS = ("--extra=--internal-ip", "--extra=--network=net", "--extra=--quiet")
COMMAND = ("--", "python", "-m", "imagen_jax.train", "--workdir=gs://b/r")


class Cloud:
  """Answers gcloud; an event happens whenever the watch waits.

  Events are queue=STATE (None: there is none), node=STATE and jobs=LIST, with
  "running", an exit code, or None (no answer) of each worker; and
  fail=VERB, whose next call fails.
  """

  def __init__(self, *events: dict):
    self.events = list(events)
    self.queue, self.node, self.jobs, self.fail = None, "READY", [None], ""
    self.calls, self.slept, self.words = [], [], []

  def sleep(self, seconds: float) -> None:
    self.slept.append(seconds)
    if not self.events:
      raise KeyboardInterrupt
    vars(self).update(self.events.pop(0))

  def run(self, words, **kwargs):
    """Stands in for subprocess.run."""
    self.words.append(words)
    verb, out, code, err = self.verb_of(words), "", 0, ""
    if verb == self.fail:
      self.fail, code = "", 1
    elif verb == "describe":
      of_queue = "queued-resources" in words
      out = self.queue if of_queue else self.node
      code, err = (0, "") if out else (1, "ERROR: NOT_FOUND: it is not there")
    elif verb == "status":
      say = {None: "not running; ", "running": "running, process 1; step 5"}
      ended = "not running; ended with exit code {}; Tue: 5 %"
      out = "".join(
        f"host{i}: {say.get(job, ended.format(job))}\n"
        for i, job in enumerate(self.jobs)
      )
    elif verb == "create":
      self.queue = "WAITING_FOR_RESOURCES"
    elif verb == "delete":
      self.queue = None
    elif verb == "start":
      self.jobs = ["running"]
    if verb not in ("describe", "status"):
      self.calls.append(verb)
    return subprocess.CompletedProcess(words, code, out, err)

  @staticmethod
  def verb_of(words) -> str:
    """The subcommand, or what worker.sh is to do."""
    command = next((w for w in words if w.startswith("--command=")), "")
    if "tar -xzf" in command:
      return "install"
    if command:
      return command.split("worker.sh ")[1].split()[0]
    return "pack" if words[0] != "gcloud" else words[4]


@pytest.fixture
def watch(launchers, monkeypatch):
  """Runs a watch to its end in a cloud; returns its exit code."""

  def start(cloud: Cloud, *flags: str) -> int:
    monkeypatch.setattr(subprocess, "run", cloud.run)
    monkeypatch.setattr(launchers.watch.run, "__defaults__", (cloud.sleep,))
    words = ["watch", *FLAGS, *flags, *COMMAND]
    return launchers.tpu_vm.body(launchers.tpu_vm.make_parser(), words)

  return start


UP = dict(queue="ACTIVE", node="READY", jobs=[None])
GO = ["claim", "stop", "start"]


def test_a_preempted_tpu_is_asked_for_again_and_resumes(watch, capsys):
  cloud = Cloud(
    dict(queue="PROVISIONING"),
    UP,
    dict(jobs=["running", "running"]),
    dict(queue="SUSPENDING", node="PREEMPTED"),
    dict(queue="SUSPENDED"),
    dict(),
    UP,
    dict(jobs=["running", 75]),
    dict(jobs=[0, 0]),
  )
  assert watch(cloud, *EXTRAS) == 0
  assert cloud.calls == [
    "create",
    *["pack", "scp", "install", *GO],
    *["delete", "create"],
    *["scp", "install", *GO],  # of what was packed first
  ]
  told = [line[20:] for line in capsys.readouterr().out.splitlines()]
  assert told == [
    "asking for a TPU",
    "the TPU is PROVISIONING; waiting",
    "the TPU is ready; setting it up",
    "starting the command on every worker",
    "the command is running",
    "the TPU is SUSPENDING; waiting",
    "the TPU is SUSPENDED; restart 1 of 20",
    "giving the queued resource back",
    "asking for a TPU",
    "the TPU is WAITING_FOR_RESOURCES; waiting",
    "the TPU is ready; setting it up",
    "starting the command on every worker",
    "the command is running",
    "the command ended with exit code 0",
  ]
  for words in cloud.words:
    verb = cloud.verb_of(words)
    if verb == "pack":
      continue
    network = "--network=net" in words
    assert ("--quiet" in words, "--spot" in words) == (True, network)
    assert network == (verb == "create")
    connects = verb not in ("create", "delete", "describe")
    assert ("--internal-ip" in words) == connects


@pytest.mark.parametrize("lost", ["SUSPENDED", "FAILED", "node", None])
def test_every_way_to_lose_a_tpu(watch, lost):
  """Its node alone may be gone, or another user has deleted all of it."""
  gone = dict(node=None) if lost == "node" else dict(queue=lost)
  cloud = Cloud(UP, gone, UP, dict(jobs=[0]))
  assert watch(cloud) == 0
  given_back = [] if lost is None else ["delete"]
  start = ["scp", "install", *GO]
  assert cloud.calls == [
    *["create", "pack", *start, *given_back, "create", *start],
  ]


@pytest.mark.parametrize("code", [75, 76])
def test_a_command_that_asks_for_it_is_resumed(watch, code):
  cloud = Cloud(UP, dict(jobs=[code, 76, 134]), dict(jobs=[0, 0, 0]))
  assert watch(cloud) == 0
  assert cloud.calls[-6:] == GO * 2


@pytest.mark.parametrize("code", [1, 2, 137])
def test_a_mistake_ends_it(watch, code, capsys):
  cloud = Cloud(UP, dict(jobs=[code, code]))
  assert watch(cloud) == code
  assert "delete" not in cloud.calls
  told = capsys.readouterr().out.splitlines()[-1]
  assert told.endswith(f"the command ended with exit code {code}")


def test_restarts_wait_longer_and_have_a_limit(watch, capsys):
  cloud = Cloud(UP, *[dict(jobs=[76])] * 20)
  assert watch(cloud, "--max_restarts=6") == 1
  assert cloud.calls.count("start") == 1 + 6
  assert [s for s in cloud.slept if s != 60] == [120, 240, 480, 900, 900]
  assert "ending after 6 restarts (--max_restarts)" in capsys.readouterr().out


def test_what_fails_once_is_tried_again(watch):
  """Setting up, a question, and a host that does not answer."""
  cloud = Cloud(
    UP | dict(fail="scp"),
    dict(),
    dict(fail="describe"),
    dict(fail="status"),
    dict(jobs=["running"]),
    dict(jobs=[0]),
  )
  assert watch(cloud) == 0
  assert cloud.calls.count("start") == 1


def test_what_cannot_work_ends_at_once(watch, launchers):
  cloud = Cloud()
  cloud.fail = "describe"  # as without permission
  with pytest.raises(launchers.launcher.CommandError):
    watch(cloud)
  assert cloud.calls == []


def test_an_interruption_leaves_the_job_and_again_finds_it(watch, capsys):
  cloud = Cloud(UP)
  assert watch(cloud) == 130
  assert cloud.jobs == ["running"]
  assert "no longer watching" in capsys.readouterr().err
  cloud.calls, cloud.events = [], [dict(jobs=[0])]
  assert watch(cloud) == 0
  assert cloud.calls == []


@pytest.mark.parametrize(
  ("ends", "expected"),
  [
    ([0, 0], 0),
    ([0, "running"], "running"),
    ([0, 76], 76),
    ([137, 75], 75),
    ([76, 1], 1),
    ([137, 0], 137),
    ([0, None], 76),
    ([None, None], "nothing"),
    ([], "nothing"),
  ],
)
def test_many_workers_have_one_verdict(launchers, ends, expected):
  cloud = Cloud()
  cloud.jobs = ends
  words = ["gcloud", "ssh", "--command=imagen_jax/launch/worker.sh status"]
  assert launchers.watch.verdict(cloud.run(words).stdout) == expected
