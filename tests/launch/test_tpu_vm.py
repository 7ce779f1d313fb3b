"""launch/tpu_vm.sh: its gcloud commands."""

import pytest

WHERE = ("--name=n", "--zone=z", "--project=p")
COMMAND = ("--", "python", "-m", "x", "--config=it's a.py", "--w=gs://b/$HOME")
VERBS = (
  ("create", "--type=v5p-128"),
  ("create", "--type=v6e-64", "--queued", "--spot", "--extra=--reserved"),
  ("setup",),
  ("start", "--type=v4-8", *COMMAND),
  ("logs", "--worker=3"),
  ("status",),
  ("status", "--queued"),
  ("stop",),
  ("resume", "--type=v5litepod-16", *COMMAND),
  ("delete",),
  ("delete", "--queued"),
)


def with_where(verb):
  at = verb.index("--") if "--" in verb else len(verb)
  return (*verb[:at], *WHERE, *verb[at:])


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_what_is_printed_is_what_runs(platform, verb):
  platform.make_packable()
  printed = platform.dry("tpu_vm.sh", *with_where(verb))
  run = platform.run("tpu_vm.sh", *with_where(verb))
  assert run.returncode == 0, run.stderr
  ran = platform.calls()
  assert ran == [words for words in printed if words[0] == "gcloud"] != []
  for words in ran:
    assert {"--zone=z", "--project=p"} < {*words}
    assert words[5] in ("n", "build/n.tgz")


@pytest.mark.parametrize(
  ("given", "asked", "version"),
  [
    ("v4-32", "v4-32", "tpu-ubuntu2204-base"),
    ("v5litepod-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-128", "v5p-128", "v2-alpha-tpuv5"),
    ("v6e-64", "v6e-64", "v2-alpha-tpuv6e"),
  ],
)
def test_types_are_known(platform, given, asked, version):
  (words,) = platform.dry("tpu_vm.sh", "create", *WHERE, f"--type={given}")
  assert words[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "create"]
  assert {f"--accelerator-type={asked}", f"--version={version}"} < {*words}
  assert "--spot" not in words


def test_a_queued_resource_has_the_name_of_its_tpu(platform):
  verb = ("create", "--name=n", "--queued", "--spot", "--type=v6e-8")
  (words,) = platform.dry("tpu_vm.sh", *verb)
  assert words == [
    *("gcloud", "compute", "tpus", "queued-resources", "create", "n"),
    *("--node-id=n", "--accelerator-type=v6e-8", "--spot"),
    "--runtime-version=v2-alpha-tpuv6e",
  ]
  (words,) = platform.dry("tpu_vm.sh", "delete", "--name=n", "--queued")
  assert words[3:] == ["queued-resources", "delete", "n", "--force"]


def test_extra_flags_are_gcloud_s(platform):
  extra = ("--extra=--reserved", "--extra=--network=it's mine")
  (words,) = platform.dry("tpu_vm.sh", "delete", *WHERE, *extra)
  assert words[-2:] == ["--reserved", "--network=it's mine"]


def test_flags_come_from_the_environment_too(platform):
  env = dict(
    TPU_NAME="n", ZONE="z", ACCELERATOR_TYPE="v9-8", RUNTIME_VERSION="r"
  )
  (words,) = platform.dry("tpu_vm.sh", "create", "--env=v6e", **env)
  assert {"n", "--zone=z", "--accelerator-type=v9-8", "--version=r"} < {*words}


def test_resume_stops_then_starts(platform):
  verb = ("resume", *WHERE, "--type=v6e-8", "--", "x")
  claim, stop, start = (w[7] for w in platform.dry("tpu_vm.sh", *verb))
  assert claim == "--command=imagen_jax/launch/worker.sh claim --replace"
  assert stop == "--command=imagen_jax/launch/worker.sh stop"
  assert start == "--command=imagen_jax/launch/worker.sh start --env=v6e -- x"


def test_nothing_follows_a_failure(platform):
  platform.make_packable()
  platform.fails.touch()
  assert platform.run("tpu_vm.sh", "setup", *WHERE).returncode == 1
  assert [words[4] for words in platform.calls()] == ["scp"]


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    ((), "a verb is needed: create, setup"),
    (("fly",), "verb 'fly' is unknown, expected create, setup"),
    (("delete",), "--name is needed"),
    (("create", "--name=n"), "--type is needed"),
    (("create", "--name=n", "--type=v9-8"), "type 'v9-8' is unknown"),
    (("create", "--name=n", "--type=tpu7x-8"), "only by launch/xpk.sh"),
    (("start", "--name=n", "--type=v4-8"), "what to run is needed"),
    (("start", "--name=n", "--type=v4-8", "--env=v8"), "no launch/env/v8.sh"),
    (("logs", "--name=n", "--worker=1;ls"), "--worker is '1;ls'"),
  ],
)
def test_refusals(platform, args, sentence):
  assert sentence in platform.says("tpu_vm.sh", *args)
