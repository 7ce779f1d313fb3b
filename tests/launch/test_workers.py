"""What launch/tpu_vm.sh does on workers, which are folders here."""

import os
import shutil
import signal
import time

import pytest

WAIT = "while :; do sleep 0.1; done"
WHERE = ("--name=n", "--zone=z", "--project=p")
RUN = ("--type=v5p-16", "--", "sh", "-c")
# Workers are folders; what gcloud would copy or run there is done in each.
PRETENDED_GCLOUD = """#!/bin/bash
printf '%s\n' "$*" >> {calls}.gcloud
case "$3 $4" in
  "queued-resources describe")
    if [ -e {calls}.queue ]; then echo ACTIVE; exit; fi
    echo NOT_FOUND >&2
    exit 1 ;;
  "tpu-vm describe") echo READY; exit ;;
  "queued-resources create") touch {calls}.queue; exit ;;
esac
for word; do
  case $word in --worker=*) which=${{word#*=}} ;; esac
  case $word in --command=*) command=${{word#*=}} ;; esac
done
for home in {calls}.w*; do
  [ "$which" = all ] || [ "${{home##*.w}}" = "$which" ] || continue
  case $4 in
    scp) stat -c %a "$5" >> {calls}.gcloud && cp "$5" "$home/${{6#*:}}" ;;
    ssh) (cd "$home" && HOME=$home PATH={calls}.bin:$PATH bash -c "$command") ;;
  esac || code=1
done
exit $code
"""
PRETENDED_PYTHON = """#!/bin/sh
case "$*" in
  "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *" pip "*) echo "$*" >> ../installed ;;
esac
"""


def pretend_python(platform, text, *names):
  """Makes Pythons that workers find first."""
  folder = platform.calls_path.with_suffix(".bin")
  folder.mkdir(exist_ok=True)
  for name in names or ("python3.11", "python3"):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def workers(platform, tmp_path):
  """The homes of two workers, with a Python that pretends."""
  platform.pretend("gcloud", PRETENDED_GCLOUD)
  platform.make_packable()
  pretend_python(platform, PRETENDED_PYTHON)
  homes = [tmp_path / "calls.w0", tmp_path / "calls.w1"]
  for home in homes:
    home.mkdir()
  yield homes
  platform.run("tpu_vm.sh", "stop", *WHERE)


def test_setup_installs_on_every_worker_and_again(platform, workers):
  (platform.root / ".venv" / "big").mkdir(parents=True)
  (platform.root / "configs").mkdir()
  old = platform.root / "configs" / "old.py"
  old.touch()
  for _ in range(2):
    run = platform.run("tpu_vm.sh", "setup", *WHERE)
    assert run.returncode == 0, run.stderr
    for home in workers:
      assert (home / "imagen_jax" / "launch" / "tpu_vm.sh").exists()
      assert (home / "imagen_jax" / ".venv" / "bin" / "python").exists()
      assert not (home / "imagen_jax" / ".venv" / "big").exists()
      assert (home / "imagen_jax" / "configs" / "old.py").exists() == bool(
        old.exists()
      )
    old.unlink(missing_ok=True)
  for home in workers:
    installed = (home / "installed").read_text().splitlines()
    # The lock once; libtpu and the package each time.
    assert [line.split()[-1] for line in installed] == [
      "requirements-lock.txt",
      *["jax[tpu]", "./imagen_jax-1-py3-none-any.whl"] * 2,
    ]
    assert "--force-reinstall" in installed[-1]
  assert platform.calls() == []  # no sudo


def test_setup_installs_a_python_where_there_is_none(platform, workers):
  pretend_python(platform, "#!/bin/sh\nexit 1\n", "python3.11")
  assert platform.run("tpu_vm.sh", "setup", *WHERE).returncode == 0
  calls = [words for words in platform.calls() if words[0] == "sudo"]
  assert len(calls) == 3 * len(workers)
  assert calls[0][1] == "add-apt-repository"
  assert calls[2][-3:] == ["install", "python3.11", "python3.11-venv"]


def wait_for(platform, text, path):
  platform.until(lambda: path.exists() and text in path.read_text())


def test_a_run_on_workers(platform, workers, launchers):
  platform.env["COLUMNS"] = "20"  # some shells export it, and ps heeds it
  for home in workers:
    shutil.copytree(platform.root, home / "imagen_jax")
  # Detached, for it would not end before the test's patience does.
  script = 'printf "<%s>\\n" "$@" "$LIBTPU_INIT_ARGS"; sleep 3600'
  run = ("start", *WHERE, "--type=v5p-16", "--", "sh", "-c", script, "0")
  args = ("it's a b", "$HOME", "")
  started = platform.run("tpu_vm.sh", *run, *args)
  assert started.returncode == 0, started.stderr
  for home in workers:
    log = home / "imagen_jax.log"
    wait_for(platform, "windowed_einsum", log)
    assert "\n<it's a b>\n<$HOME>\n<>\n<--xla" in log.read_text()
  again = platform.run("tpu_vm.sh", *run, *args)
  assert again.returncode == 1
  assert "worker.sh: a run is under way" in again.stderr
  status = platform.run("tpu_vm.sh", "status", *WHERE).stdout
  assert status.count("running, process") == 2
  (workers[1] / "imagen_jax.log").write_text("the second\n")
  logs = platform.start("tpu_vm.sh", "logs", *WHERE, "--worker=1")
  assert logs.stdout.readline() == "the second\n"
  os.killpg(logs.pid, signal.SIGTERM)
  logs.communicate()

  resume = ("resume", *WHERE, "--type=v5p-16", "--", "sh", "-c")
  trap = f"trap 'sleep 0.5; echo saved; exit 3' TERM; echo up; {WAIT}"
  assert platform.run("tpu_vm.sh", *resume, trap).returncode == 0
  for home in workers:
    wait_for(platform, "\nup\n", home / "imagen_jax.log")
  assert platform.run("tpu_vm.sh", "stop", *WHERE).returncode == 0
  for home in workers:
    log = (home / "imagen_jax.log").read_text().splitlines()
    assert log[-2] == "saved"
    assert log[-1].endswith("ended with exit code 3")
  status = platform.run("tpu_vm.sh", "status", *WHERE).stdout
  assert status.count("not running; ended with exit code 3; ") == 2
  # Whatever was left running may still have written something.
  with (workers[0] / "imagen_jax.log").open("a") as file:
    file.write("1 %\r\x1b[31m2 %")
  status = platform.run("tpu_vm.sh", "status", *WHERE).stdout
  assert "not running; ended with exit code 3; [31m2 %\n" in status
  assert launchers.watch.verdict(status) == 3


def test_of_two_starts_at_once_one_runs(platform, workers):
  for home in workers:
    shutil.copytree(platform.root, home / "imagen_jax")
  starts = [
    platform.start("tpu_vm.sh", "start", *WHERE, *RUN, f"echo {i}; sleep 3600")
    for i in "ab"
  ]
  told = [process.communicate(timeout=300)[1] for process in starts]
  assert sorted(process.returncode for process in starts) == [0, 1], told
  won = [process.returncode for process in starts].index(0)
  for home in workers:
    log = home / "imagen_jax.log"
    wait_for(platform, f"\n{'ab'[won]}\n", log)
    assert len(log.read_text().splitlines()) == 2
  lost = told[1 - won].splitlines()
  (sentence,) = [line for line in lost if line.startswith("launch/worker.sh")]
  assert "is under way (" in sentence
  assert "since " in sentence
  platform.run("tpu_vm.sh", "stop", *WHERE)


def worker(platform, *args):
  """Runs worker.sh in a home of its own."""
  home = platform.calls_path.with_suffix(".w0")
  return platform.run("worker.sh", *args, HOME=str(home))


def test_locks_of_the_dead_do_not_block(platform, workers):
  home = workers[0]
  command = ("start", "--env=v4", "--", "sh", "-c", "sleep 3600")
  assert worker(platform, "claim").returncode == 0
  again = worker(platform, "claim")
  assert again.returncode == 2
  assert "a start is under way (" in again.stderr
  os.utime(home / "imagen_jax.claim", (0, 0))  # its maker died
  assert worker(platform, "claim").returncode == 0
  assert worker(platform, *command).returncode == 0
  assert worker(platform, "claim", "--replace").returncode == 0
  for verb in (command, ("claim",)):
    os.utime(home / "imagen_jax.claim", (0, 0))
    refused = worker(platform, *verb)
    assert refused.returncode == 2
    pid = int((home / "imagen_jax.pid").read_text())
    assert f"a run is under way (process {pid} of " in refused.stderr
    assert refused.stderr.count("\n") == 1
  os.killpg(pid, signal.SIGKILL)
  platform.until(lambda: worker(platform, "claim").returncode == 0)
  assert worker(platform, *command).returncode == 0
  worker(platform, "stop")


def test_a_token_reaches_the_command_and_nothing_else(platform, workers):
  for home in workers:
    shutil.copytree(platform.root, home / "imagen_jax")
  token = "secret of mine's"
  script = 'printf "%s" "$HF_TOKEN" > "$HOME/got"; echo done'
  flags = ("start", *WHERE, "--pass_env=HF_TOKEN", *RUN, script)
  printed = platform.dry("tpu_vm.sh", *flags, HF_TOKEN=token)
  run = platform.run("tpu_vm.sh", *flags, HF_TOKEN=token)
  assert run.returncode == 0, run.stderr
  for home in workers:
    wait_for(platform, "ended with exit code 0", home / "imagen_jax.log")
    assert (home / "got").read_text() == token
    assert token not in (home / "imagen_jax.log").read_text()
    assert not (home / ".imagen_jax.env").exists()
  called = platform.calls_path.with_suffix(".gcloud").read_text()
  assert "\n600\n600\n" in called  # of the file, once for each worker
  for text in (called, run.stdout, run.stderr, str(printed)):
    assert token not in text
  assert not list((platform.root / "build").iterdir())


def test_a_watch_on_workers(platform, workers, launchers, monkeypatch, capfd):
  """From nothing to the end of a command that is interrupted once."""
  for name, value in platform.env.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(launchers.launcher, "ROOT", platform.root)
  sleep = lambda seconds: time.sleep(0.05)
  monkeypatch.setattr(launchers.watch.run, "__defaults__", (sleep,))
  script = "[ -e once ] && exit; touch once; exit 75"
  words = ["watch", *WHERE, "--spot", *RUN, script]
  assert launchers.tpu_vm.body(launchers.tpu_vm.make_parser(), words) == 0
  told = capfd.readouterr().out
  assert "the command ended with exit code 75; restart 1 of 20" in told
  assert "packed into build/n.tgz" in told
  for home in workers:
    log = (home / "imagen_jax.log").read_text()
    assert log.count("ended with exit code ") == 2
