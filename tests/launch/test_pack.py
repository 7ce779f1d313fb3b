"""launch/pack.py: what goes to workers and images, and what never does."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
KEY = "-----BEGIN PRIVATE KEY-----\n"
PACKED = {
  *("configs/alias.py", "configs/a.py", "configs/new file.py"),
  *("launch/run.sh", "launch/env/v4.sh", "requirements-lock.txt"),
  "imagen_jax-1-py3-none-any.whl",
}
# What is there beside it, and must stay.
PRIVATE = {
  ".env": "HF_TOKEN=x",
  "id_rsa": KEY,
  "runs/x/metrics.jsonl": "",
  "t5/t5_v1_1_xxl.safetensors": "",
  "train.log": "",
  "launch/.env": "HF_TOKEN=x",
  "launch/id_ed25519": "",
  "launch/gcp-credentials.json": "{}",
  "launch/hf_token": "x",
  "launch/job.log": "",
  "configs/account.json": '{"private_key": "' + KEY + '"}',
  "configs/server.pem": "",
  "imagen_jax/notes.txt": "",
}


@pytest.fixture
def checkout(tmp_path):
  """A checkout with what people leave there; its files are not committed."""
  root = tmp_path / "tree"
  files = dict.fromkeys(PACKED, "") | PRIVATE
  files["imagen_jax/__init__.py"] = files["setup.py"] = ""
  files["configs/ignored.py"] = ""
  files[".gitignore"] = "ignored.py\n/.venv\n"
  for name in {*files} - {"configs/alias.py", "imagen_jax-1-py3-none-any.whl"}:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(files[name])
  (root / "configs" / "a.py").write_text("a = 1\n")
  (root / "configs" / "alias.py").symlink_to("a.py")
  (root / "configs" / "outside").symlink_to("/etc/hostname")
  (root / "configs" / "loop").symlink_to("loop")
  (root / "configs" / "settings.txt").symlink_to("../.env")
  (root / "launch" / "folder").symlink_to("/etc")
  (root / "imagen_jax" / "configs").symlink_to("../configs")
  os.mkfifo(root / "configs" / "pipe")
  with (root / "configs" / "t5.bin").open("wb") as file:
    file.truncate(2**26 + 1)  # a hole
  python = root / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(
    "#!/bin/sh\nwhile [ $# -gt 1 ]; do\n  case $1 in --wheel-dir)"
    ' touch "$2/imagen_jax-1-py3-none-any.whl" ;; esac\n  shift\ndone\n'
  )
  python.chmod(0o755)
  return root


def git(root, *words):
  subprocess.run(["git", "-C", root, *words], check=True, capture_output=True)


def test_of_a_checkout_what_git_would_add_is_packed(
  launchers, checkout, capsys, monkeypatch
):
  git(checkout, "init")
  git(checkout, "add", "configs/a.py", "launch/run.sh", "configs/server.pem")
  monkeypatch.setenv("GIT_DIR", "/nowhere")  # as within a hook of git's
  output = checkout / "build" / "n.tgz"
  launchers.pack.pack(checkout, output)
  with tarfile.open(output) as archive:
    members = {m.name.removeprefix("./"): m for m in archive if m.isfile()}
    assert archive.extractfile("./configs/alias.py").read() == b"a = 1\n"
    assert {member.uname for member in archive} == {"root"}
  assert {*members} == PACKED | {"packed.txt"}
  told = capsys.readouterr().out
  for name in PACKED:
    assert f"  {name}\n" in told
  assert "6 B  configs/a.py\n" in told
  for name in ("configs/outside", "launch/folder", "configs/settings.txt"):
    assert f"left out '{name}': it is a link to what is not packed" in told
  for name in ("launch/.env", "configs/server.pem", "configs/account.json"):
    assert f"left out '{name}': it " in told
  assert "'configs/t5.bin': it is larger than 67.1 MB" in told
  assert os.listdir(checkout / "build") == ["n.tgz"]


def test_without_git_all_but_private_files_are_packed(
  launchers, checkout, capsys
):
  output = checkout / "build" / "image"
  for _ in range(2):  # its own folder is replaced
    launchers.pack.pack(checkout, output)
    found = {
      str(path.relative_to(output))
      for path in output.rglob("*")
      if path.is_file()
    }
    assert found == PACKED | {"packed.txt", "configs/ignored.py"}
  assert "no .git here: all files count" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("spoil", "sentence"),
  [
    (lambda root: (root / ".git").mkdir(), "git cannot list the files of"),
    (lambda root: (root / "setup.py").unlink(), "has no setup.py, expected"),
    (lambda root: (root / "build" / "x").mkdir(parents=True), "is there and"),
    (
      lambda root: (root / ".venv/bin/python").write_text("#!/bin/sh\nexit 1"),
      "the wheel cannot be built",
    ),
  ],
)
def test_refusals_leave_what_is_there(launchers, checkout, spoil, sentence):
  spoil(checkout)
  before = {*checkout.rglob("*")}
  with pytest.raises(ValueError, match=sentence):
    launchers.pack.pack(checkout, checkout / "build" / "x")
  assert {*checkout.rglob("*")} - {checkout / "build"} == before - {
    checkout / "build"
  }


def test_an_image_is_built_of_what_is_packed():
  text = (ROOT / "launch" / "Dockerfile").read_text()
  assert "-r requirements-lock.txt" in text
  assert "jax[tpu]" in text
  ignored = (
    (ROOT / "launch" / "Dockerfile.dockerignore").read_text().split("\n")
  )
  assert [line for line in ignored if line and line[0] != "#"] == [
    "*",
    "!imagen_jax-*.whl",
    "!configs",
    "!launch",
    "!requirements-lock.txt",
  ]


@pytest.mark.slow
def test_the_wheel_of_a_checkout_is_whole(launchers, tmp_path):
  root = tmp_path / "tree"
  skip = shutil.ignore_patterns("__pycache__")
  for name in (*launchers.pack.SOURCES, "launch", launchers.pack.LOCK):
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=skip)
    else:
      shutil.copy(ROOT / name, root / name)
  (root / ".venv" / "bin").mkdir(parents=True)
  (root / ".venv" / "bin" / "python").write_text(
    f'#!/bin/sh\nexec {sys.executable} "$@"\n'
  )
  (root / ".venv" / "bin" / "python").chmod(0o755)
  launchers.pack.pack(root, root / "build" / "image")
  (wheel,) = (root / "build" / "image").glob("*.whl")
  with zipfile.ZipFile(wheel) as file:
    names = {*file.namelist()}
  for folder, place in (("imagen_jax", "imagen_jax"), ("configs", "")):
    for path in (ROOT / folder).rglob("*.py"):
      name = path.relative_to(ROOT).as_posix()
      assert (name if place else f"imagen_jax/{name}") in names
  assert "imagen_jax/weights/shapes16.safetensors" in names
