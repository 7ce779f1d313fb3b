"""Bad input to the verb sample: one sentence each, and nothing is made."""

import pytest

from imagen_jax.cli import program


def names(folder) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
  ("args", "said"),
  [
    ([], "there is no prompt, give --prompt or --prompts_file"),
    (["--prompt="], "prompt 0 is empty"),
    (["--prompt=a", "--prompt= \t"], "prompt 1 is empty"),
    (["--prompt=\u200b"], "prompt 0 is empty"),
    (["--prompt=\udcff"], "prompt 0 is not valid Unicode text"),
    (
      ["--prompts_file=nowhere.txt"],
      "prompts_file nowhere.txt cannot be read: No such file or directory",
    ),
    (
      ["--prompt=a", "--steps=0"],
      "stage base: steps is 0, expected at least 1",
    ),
    (["--prompt=a", "--seed=-1"], "seed is -1, expected 0 to 2**32 - 1"),
    (
      ["--prompt=a", "--seed=4294967296"],
      "seed is 4294967296, expected 0 to 2**32 - 1",
    ),
    (
      ["--prompt=a", "--num_images=0"],
      "num_images is 0, expected at least 1",
    ),
    (["--prompt=a", "--guidance=nan"], "guidance is nan, expected a number"),
    (
      ["--prompt=a", "--weights=elsewhere"],
      "weights is elsewhere, but the config has no hf:// paths",
    ),
    (
      ["--prompt=a", "--weights=a/b", "--config.base.weights=hf://c/d/e"],
      "a/b is not there, expected a folder with d or an owner on the Hub",
    ),
    (
      ["--prompt=a", "--config.base.weights=nowhere"],
      "nowhere is no training run: it has no checkpoints/",
    ),
    (
      ["--prompt=a", "--config.base.weights=model.ckpt"],
      "weights model.ckpt are a pickle, which can run anything, expected "
      "safetensors",
    ),
    (
      ["--prompt=a", "--config.base.weights=nowhere.safetensors"],
      "weights nowhere.safetensors cannot be read: No such file or directory",
    ),
    (
      ["--prompt=a", "--config.text.vocabulary=nowhere"],
      "vocabulary nowhere cannot be read: No such file or directory",
    ),
    (
      ["--prompt=a", "--config.batch_size=0"],
      "config batch_size is 0, expected at least 1",
    ),
    (
      ["--prompt=a", "--config.foo=1"],
      "config key foo is unknown, expected stages, text, batch_size, base, "
      "larger",
    ),
    (
      ["--prompt=a", "--config.larger.sampling.stepps=1"],
      "unknown config key larger.sampling.stepps, expected steps, guidance, "
      "step, threshold, aug_level, timesteps, grid, guidance_interval, "
      "guidance_rescale",
    ),
  ],
)
def test_bad_input(call, tmp_path, args, said):
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(ValueError) as caught:
    call(*args)
  assert str(caught.value) == said
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
  ("data", "said"),
  [
    (b"\x89PNG\r\n\x1a\n\0\0\0\xff", "is not UTF-8 text"),
    (b"a red\0star", "is not UTF-8 text"),
    (b"\n \n", "has no prompt in it, expected one per line"),
    (b"", "has no prompt in it, expected one per line"),
  ],
)
def test_a_bad_file_of_prompts(call, tmp_path, data, said):
  path = tmp_path / "prompts.txt"
  path.write_bytes(data)
  with pytest.raises(ValueError) as caught:
    call(f"--prompts_file={path}")
  assert str(caught.value) == f"prompts_file {path} {said}"
  assert names(tmp_path) == ["prompts.txt"]


@pytest.mark.parametrize("where", ["file", "file/a/b", "link", "link/a"])
def test_an_outdir_that_cannot_be(call, tmp_path, where):
  (tmp_path / "file").touch()
  (tmp_path / "link").symlink_to(tmp_path / "nowhere")
  with pytest.raises(ValueError) as caught:
    call("--prompt=a", outdir=where)
  said = f"outdir {tmp_path}/{where} cannot be written: "
  assert str(caught.value).startswith(said)
  assert names(tmp_path) == ["file", "link"]


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (
      ["--steps=abc"],
      "flag --steps=abc: invalid literal for int() with base 10: 'abc'",
    ),
    (
      ["--stepps=1"],
      "Unknown command line flag 'stepps'. Did you mean: steps ?",
    ),
    (["--prompt"], "Missing value for flag --prompt"),
    (
      ["--config.base.foo.bar=1", "--config.base.stage.size=8"],
      "the config has no key for --config.base.foo.bar=1",
    ),
    (
      ["--config.batch_size=many"],
      "flag --config.batch_size=many: invalid literal for int() with base 10: "
      "'many'",
    ),
  ],
)
def test_bad_flags(call, capsys, args, said):
  with pytest.raises(SystemExit) as caught, program.as_exit_codes():
    call(*args)
  assert caught.value.code == 2
  assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (None, "config '{path}' cannot be read, expected a file such as configs/"),
    (
      "def get_config(): pass",
      "get_config() returned None, expected a ConfigDict",
    ),
    (
      "def get_config(): return 3",
      "get_config() returned 3, expected a ConfigDict",
    ),
    (
      "def get_config(): return {}",
      "config key stages is missing, expected a cascade's config, such as",
    ),
    (
      "from configs.shapes16 import get_config",
      "config key stages is missing, expected a cascade's config, such as",
    ),
  ],
)
def test_a_bad_config(call, tmp_path, content, said):
  path = tmp_path / "bad.py"
  if content is not None:
    path.write_text(content)
  with pytest.raises(ValueError) as caught:
    call("--prompt=a", f"--config={path}")
  assert str(caught.value).startswith(said.format(path=path))


@pytest.mark.parametrize(
  ("args", "code", "said"),
  [
    (["--prompt=a"], 1, "--config is needed, such as configs/shapes.py"),
    (
      ["--config=configs/shapes.py", "two", "words"],
      2,
      "unexpected argument 'two', expected only --flags",
    ),
    (
      ["--prompt=a", "--config=configs/imagen.py:nice"],
      2,
      "imagen.py:nice is unknown, expected looks, fid",
    ),
  ],
)
def test_a_mistake_is_one_line_for_the_caller(run, tmp_path, args, code, said):
  done = run("sample", *args, f"--outdir={tmp_path}/out")
  assert (done.returncode, done.stderr) == (code, f"error: {said}\n")
  assert done.stdout == ""
  assert names(tmp_path) == []
