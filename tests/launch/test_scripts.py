"""What holds for every script of launch/."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
LAUNCHERS = ("local.sh", "slurm.sh", "tpu_vm.sh", "worker.sh", "xpk.sh")


@pytest.mark.parametrize("script", LAUNCHERS)
def test_help(platform, script):
  run = platform.run(script, "--help")
  assert (run.returncode, run.stderr) == (0, "")
  assert f"launch/{script}" in run.stdout
  assert "--dry_run" in run.stdout
  assert "#!" not in run.stdout
  assert "set -euo" not in run.stdout


@pytest.mark.parametrize("script", LAUNCHERS)
def test_unknown_flags_are_named(platform, script):
  first = {"local.sh": ("2",), "slurm.sh": ()}.get(script, ("start",))
  said = platform.says(script, *first, "--no_such=1")
  assert "flag '--no_such=1' is unknown" in said
  assert "flag '--fly' is unknown" in platform.says(script, *first, "--fly")
  assert "expected --env=VALUE" in platform.says(script, *first, "--env")
  said = platform.says(script, *first, "--dry_run=1")
  assert "flag '--dry_run" in said


@pytest.mark.parametrize("script", LAUNCHERS)
def test_scripts_are_strict_or_wrappers_and_can_be_run(script):
  text = (LAUNCH / script).read_text()
  assert "\nset -euo pipefail\n" in text or text.count("\n") == 2
  assert (LAUNCH / script).stat().st_mode & 0o111


def test_launchers_need_the_standard_library_only():
  paths = [path for path in LAUNCH.glob("*.py") if path.name != "sweep.py"]
  own = {path.stem for path in paths}
  assert {"launcher", "pack", "tpu_vm"} < own
  for path in paths:
    for node in ast.walk(ast.parse(path.read_text())):
      names = [alias.name for alias in getattr(node, "names", ())]
      if isinstance(node, ast.ImportFrom):
        names = [node.module]
      elif not isinstance(node, ast.Import):
        continue
      tops = {name.split(".")[0] for name in names}
      assert tops <= own | sys.stdlib_module_names, path


def test_an_old_python_is_told_so():
  """Before anything that it would not understand."""
  code = "import sys; sys.version_info = (3, 8); import launcher"
  run = subprocess.run(
    [sys.executable, "-c", code], cwd=LAUNCH, capture_output=True, text=True
  )
  assert run.returncode != 0
  assert run.stderr.startswith("launch: this is Python ")
  assert "expected 3.11 or newer" in run.stderr
  assert run.stderr.count("\n") == 1
  for path in LAUNCH.glob("*.py"):
    if path.name != "sweep.py":
      ast.parse(path.read_text(), feature_version=(3, 8))


def test_the_readme_names_every_program():
  text = (LAUNCH / "README.md").read_text()
  names = {path.name for path in LAUNCH.iterdir() if path.is_file()}
  names = {name for name in names if not name.endswith(("ignore", ".md"))}
  names |= {path.stem for path in (LAUNCH / "env").iterdir()}
  assert {name for name in names if name not in text} == set()


def test_shellcheck_finds_nothing():
  paths = [
    *LAUNCH.glob("*.sh"),
    *LAUNCH.glob("env/*"),
    *LAUNCH.glob("*.sbatch"),
  ]
  paths = [path.relative_to(ROOT) for path in paths]
  run = subprocess.run(
    [pathlib.Path(sys.executable).with_name("shellcheck"), "-x", *paths],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stdout
