"""Hostile values: each becomes one sentence, and no part of a command."""

import shlex
import subprocess

import pytest

HOSTILE = (
  *("--flags-file=x", "-a", "../../x", ".", "/etc/passwd", "a,app=b", "a b"),
  *("a'b", 'a"b', "a;ls", "$(ls)", "`ls`", "a\nb", "a\n", "a\rb", "a\x85b"),
  *("a\u2028b", "a\x1bb", "é", "\u0663", "*", "a" * 300, " "),
)
WHERE = ("--name=n", "--type=v4-8", "--cluster=c", "--image=i")


@pytest.fixture
def no_runs(monkeypatch):
  """Fails where anything is run."""

  def run(*args, **kwargs):
    raise AssertionError(f"was run: {args}")

  monkeypatch.setattr(subprocess, "run", run)
  monkeypatch.setattr(subprocess, "Popen", run)


@pytest.mark.parametrize("name", ["local", "slurm", "tpu_vm", "xpk"])
def test_every_value_is_checked(launchers, name, monkeypatch):
  """By flag and by variable; what a new flag takes is checked too."""
  parser = getattr(launchers, name).make_parser()
  assert len(parser.kinds) >= 4
  for flag, kind, _, variable in parser.kinds.values():
    for value in HOSTILE:
      if kind is launchers.launcher.JOB and value == "a,app=b":
        continue  # a point's name in a sweep; only sbatch sees it
      with pytest.raises(ValueError, match=f"^{flag} is ") as told:
        parser.read([f"{flag}={value}"])
      assert len(str(told.value).splitlines()) == 1
      assert len(str(told.value)) < 300
      if variable:
        monkeypatch.setenv(variable, value)
        with pytest.raises(ValueError, match=f"^{variable} is "):
          parser.read([])
        monkeypatch.delenv(variable)
    with pytest.raises(ValueError, match=f"{flag} is needed, and is ''"):
      parser.read([f"{flag}="])


@pytest.mark.parametrize(
  ("name", "verb", "words"),
  [
    ("xpk", "start", ()),
    ("tpu_vm", "start", ()),
    ("tpu_vm", "resume", ()),
    ("tpu_vm", "watch", ()),
  ],
)
@pytest.mark.parametrize(
  "word", ["a\nb", "a\rb", "a\x85b", "a\u2029b", "a\x0bb", "a\x9bb", "\udc85"]
)
def test_a_command_is_one_line(launchers, no_runs, name, verb, words, word):
  module = getattr(launchers, name)
  flags = [
    f for f in WHERE if f.split("=")[0][2:] in module.make_parser().kinds
  ]
  with pytest.raises(ValueError, match="the command has a line break") as told:
    module.body(module.make_parser(), [verb, *flags, "--", "echo", word])
  assert str(told.value).isprintable()


@pytest.mark.parametrize("first", ["", "-a", "--wrap=x"])
@pytest.mark.parametrize("name", ["local", "slurm"])
def test_a_command_begins_with_a_program(launchers, no_runs, name, first):
  module = getattr(launchers, name)
  words = [*(["1"] if name == "local" else []), "--", first, "x"]
  with pytest.raises(ValueError, match="the command begins with"):
    module.body(module.make_parser(), words)


@pytest.mark.parametrize(
  "extra", ["other", "-", "--=x", "a=--b", "--a=b\nc", "--a=\x85", "--é"]
)
@pytest.mark.parametrize("name", ["slurm", "tpu_vm", "xpk"])
def test_extra_is_a_flag(launchers, name, extra):
  parser = getattr(launchers, name).make_parser()
  with pytest.raises(ValueError, match=r"^--extra is .*, expected one flag"):
    parser.read([f"--extra={extra}"])


@pytest.mark.parametrize("name", ["local", "slurm", "tpu_vm", "xpk"])
@pytest.mark.parametrize("flag", ["--name", "--extra", "--env"])
def test_a_value_is_not_the_end_of_flags(launchers, name, flag):
  parser = getattr(launchers, name).make_parser()
  with pytest.raises(ValueError, match=f"^{flag} is '--', expected a value"):
    parser.read([f"{flag}=--", "--", "x"])


TOKEN = "hf_" + "abcdefghij" * 3


@pytest.mark.parametrize(
  "word",
  [
    "HF_TOKEN=x1y2z3",
    "WANDB_API_KEY=0123456789abcdef",
    "--hub.token=x1y2z3",
    "export MY_SECRET=x1y2z3; python -m x",
    "--env=DB_PASSWORD=abc=",
    TOKEN,
    f"--header=Bearer {TOKEN}",
    "ya29." + "a1" * 20,
    "-----BEGIN RSA PRIVATE KEY-----",
    "x-exported-value-x",
  ],
)
@pytest.mark.parametrize("name", ["local", "slurm", "tpu_vm", "xpk"])
def test_a_token_in_a_command_is_refused_and_not_shown(
  launchers, monkeypatch, name, word
):
  monkeypatch.setenv("SOME_TOKEN", "exported-value")
  parser = getattr(launchers, name).make_parser()
  with pytest.raises(ValueError, match=r"holds a secret.*--pass_env=") as told:
    parser.read(["--", "sh", "-c", word])
  for part in ("x1y2z3", "abcdefghij", "a1a1", "exported-value", "abc="):
    assert part not in str(told.value)


def test_what_is_no_token_is_passed_on(launchers):
  words = ["--config.text.tokenizer=a", "--tokens=128", "--max_token=128"]
  words += ["HF_TOKEN=$HF_TOKEN", "it's a red token", "--config=sk-x.py"]
  args = launchers.tpu_vm.make_parser().read(["--", *words])
  assert args.command == words


@pytest.mark.parametrize(
  ("value", "sentence"),
  [(None, "is not set"), ("a\nb", "holds a line break")],
)
def test_variables_that_cannot_be_passed(
  launchers, monkeypatch, value, sentence
):
  monkeypatch.delenv("HF_TOKEN", raising=False)
  if value:
    monkeypatch.setenv("HF_TOKEN", value)
  with pytest.raises(ValueError, match=f"^--pass_env=HF_TOKEN {sentence}"):
    launchers.launcher.passed_variables(["HF_TOKEN"])
  with pytest.raises(ValueError, match="^--pass_env is 'A=b', expected"):
    launchers.launcher.passed_variables(["A=b"])


def test_xpk_passes_no_value_that_breaks_yaml(launchers, monkeypatch):
  monkeypatch.setenv("HF_TOKEN", 'a"\\b')
  words = ["start", *WHERE, "--pass_env=HF_TOKEN", "--", "x"]
  with pytest.raises(ValueError, match="^--pass_env=HF_TOKEN holds a quote"):
    launchers.xpk.body(launchers.xpk.make_parser(), words)


def test_xpk_reads_a_token_from_the_environment(platform):
  words = platform.dry(
    *("xpk.sh", "start", *WHERE, "--pass_env=HF_TOKEN", "--", "x"),
    HF_TOKEN="secret-of-mine",
  )[0]
  assert "--env=HF_TOKEN" in words
  assert "secret-of-mine" not in shlex.join(words)


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh"])
def test_wrappers_start_from_anywhere(platform, script):
  """Through links, and whatever CDPATH is."""
  link = platform.bin / "a link"
  link.symlink_to(platform.root / "launch" / script)
  words = ["1"] if script == "local.sh" else []
  run = subprocess.run(
    ["./a link", *words, "--dry_run", "--", "x"],
    cwd=platform.bin,
    env=platform.env | {"CDPATH": f"{platform.root}:/", "PYTHONSAFEPATH": "1"},
    capture_output=True,
    text=True,
  )
  assert (run.returncode, run.stderr) == (0, "")
  assert run.stdout.count("\n") == 1


@pytest.mark.parametrize("script", ["worker.sh", "slurm.sbatch"])
def test_a_file_of_flags_elsewhere_is_not_sourced(platform, script, tmp_path):
  evil = tmp_path / "evil.sh"
  evil.write_text("touch evil\n")
  name = "../" * 12 + str(tmp_path.relative_to("/")) + "/evil"
  words = ["start", f"--env={name}", "--", "true"]
  if script == "slurm.sbatch":
    words = [name, "true"]
  run = subprocess.run(
    ["bash", platform.root / "launch" / script, *words],
    cwd=platform.root,
    env=platform.env | {"SLURM_SUBMIT_DIR": str(platform.root)},
    capture_output=True,
    text=True,
  )
  assert run.returncode == 2
  assert run.stderr.count("\n") == 1
  assert not list(platform.root.rglob("evil"))
