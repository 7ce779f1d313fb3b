"""The verb sample: what it writes, and what an image depends on."""

import json
import os
import re
import runpy
import subprocess
import sys
import weakref

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import imagen_jax
from imagen_jax import build
from imagen_jax.data.images import to_uint8
from imagen_jax.imagen import Imagen
from imagen_jax.interop import published

STAR, CIRCLE = "a red star", "two blue circles above a square"


def names(folder) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def read(path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image)


def file(folder, stem):
  """The one file of a stem, which a checksum follows."""
  (path,) = folder.glob(f"{stem}-????????.png")
  return path


def stems(folder) -> list[str]:
  return [name[: -len("-12345678.png")] for name in names(folder)]


def test_one_prompt_is_one_picture(call, config, capsys):
  folder = call(f"--prompt={STAR}", "--seed=3")
  assert stems(folder) == ["a_red_star-s3-0"]
  with Image.open(file(folder, "a_red_star-s3-0")) as image:
    assert (image.size, image.mode) == ((16, 16), "RGB")
    assert np.asarray(image).std() > 10
    note = image.text
  settings = json.loads(note.pop("config"))
  made_with = json.loads(note.pop("weights"))
  assert made_with.keys() == {"text", "base", "larger"}
  assert note.pop("version") == imagen_jax.__version__
  assert file(folder, "a_red_star-s3-0").match(f"*-{note.pop('id')[:8]}.png")
  expected = runpy.run_path(str(config))["get_config"]()
  assert note == {"prompt": STAR, "seed": "3", "index": "0"}
  assert settings == json.loads(expected.to_json_best_effort())
  lines = capsys.readouterr().out.splitlines()
  for start in ("started in", "  text: 1 prompt(s)", "  base: 8x8 in "):
    assert any(line.startswith(start) for line in lines), start
  assert any(line.startswith("sample 1/1") for line in lines)
  assert lines[-2] == str(file(folder, "a_red_star-s3-0"))


def test_the_same_seed_gives_the_same_file(call):
  first, second = (
    file(call(f"--prompt={STAR}", "--seed=0", outdir=name), "a_red_star-s0-0")
    for name in ("first", "second")
  )
  assert first.name == second.name
  assert first.read_bytes() == second.read_bytes()


def test_seed_guidance_and_steps_matter_and_are_noted(call):
  plain = read(
    file(call(f"--prompt={STAR}", outdir="plain"), "a_red_star-s0-0")
  )
  for flags in ({"seed": "1"}, {"guidance": "4.0", "steps": "2"}):
    args = [f"--{name}={value}" for name, value in flags.items()]
    (path,) = call(f"--prompt={STAR}", *args, outdir=args[0]).iterdir()
    assert np.abs(read(path).astype(int) - plain).max() > 2, flags
    with Image.open(path) as image:
      assert image.text | flags == image.text


def test_a_picture_does_not_depend_on_its_neighbours(call):
  others = ["a dog", "green", "one black square"]
  first = [f"--prompt={p}" for p in (STAR, *others)]
  last = [f"--prompt={p}" for p in (CIRCLE, "x", others[0], STAR)]
  first, last = call(*first, outdir="first"), call(*last, outdir="last")
  for stem in ("a_red_star-s0-0", "a_dog-s0-0"):
    one, other = (read(file(folder, stem)) for folder in (first, last))
    np.testing.assert_array_equal(one, other)
  # Alone it is made by the same program, whose batch is filled up.
  alone = call(f"--prompt={STAR}", outdir="alone")
  alone, raise_together = (
    read(file(folder, "a_red_star-s0-0")) for folder in (alone, first)
  )
  np.testing.assert_array_equal(alone, raise_together)


def test_the_text_encoder_is_gone_before_the_nets_come(call, monkeypatch):
  load_text, load_net = published.load_text, published.load_net
  held, left = [], []

  def note(*args):
    params = load_text(*args)
    held.extend(map(weakref.ref, jax.tree.leaves(params)))
    return params

  def look(*args):
    left.extend(ref for ref in held if ref() is not None)
    return load_net(*args)

  monkeypatch.setattr(published, "load_text", note)
  monkeypatch.setattr(published, "load_net", look)
  call(f"--prompt={STAR}", "--steps=1", "--config.text.null=empty")
  assert len(held) > 10 and not left


def test_nets_are_fetched_before_the_text_encoder_is_read(call, monkeypatch):
  monkeypatch.setattr(build, "load_encoder", None)
  with pytest.raises(ValueError, match="^hf://a/b/\\* names no part of a repo"):
    call(f"--prompt={STAR}", "--config.larger.weights=hf://a/b/*")


def test_weights_of_the_hub_may_lie_in_a_folder(call, config, tmp_path):
  plain = read(
    file(call(f"--prompt={STAR}", outdir="plain"), "a_red_star-s0-0")
  )
  (tmp_path / "repos").mkdir()
  (tmp_path / "repos" / "demo").symlink_to(config.parent)
  moved = [
    f"--config.{part}.weights=hf://someone/demo@v1/{part}.safetensors"
    for part in ("text", "base", "larger")
  ]
  args = (f"--prompt={STAR}", *moved)
  folder = call(*args, f"--weights={tmp_path}/repos", outdir="moved")
  np.testing.assert_array_equal(read(file(folder, "a_red_star-s0-0")), plain)
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError) as caught:
    call(*args, f"--weights={tmp_path}/empty")
  said = f"folder {tmp_path}/empty has no demo, expected a copy of someone/demo"
  assert str(caught.value) == said


def test_more_pictures_than_a_batch_holds(call):
  pair = (f"--prompt={STAR}", f"--prompt={CIRCLE}", "--num_images=3")
  folder = call(*pair)
  words = ("a_red_star", "two_blue_circles_above_a_square")
  pictures = [
    read(file(folder, f"{word}-s0-{i}")) for word in words for i in range(3)
  ]
  assert len(names(folder)) == 7
  assert len({picture.tobytes() for picture in pictures}) == 6
  (name,) = folder.glob("grid-s0-????????.png")
  sheet = read(name)
  assert sheet.shape == (2 * 18 - 2, 3 * 18 - 2, 3)
  np.testing.assert_array_equal(sheet[:16, 18:34], pictures[1])
  np.testing.assert_array_equal(sheet[18:, :16], pictures[3])
  with Image.open(name) as image:
    assert json.loads(image.text["prompt"]) == [STAR, CIRCLE]


def test_the_interface_gives_the_verbs_images(call, config):
  """One by its number, and a part of the cascade too."""
  imagen = imagen_jax.load(str(config))
  samples = imagen.sample(STAR, num_images=3, progress=False)
  one = call(f"--prompt={STAR}", "--index=2", outdir="one")
  assert stems(one) == ["a_red_star-s0-2"]
  last = read(file(one, "a_red_star-s0-2"))
  np.testing.assert_array_equal(last, samples.images[2])
  first = call(f"--prompt={STAR}", "--stages=:base", outdir="first")
  path = file(first, "a_red_star-s0-0")
  small = read(path)
  expected = to_uint8(samples.stages["base"][0])
  np.testing.assert_array_equal(small, expected)
  args = ("--stages=larger:", f"--image={path}")
  second = call(f"--prompt={STAR}", *args, outdir="second")
  large = read(file(second, "a_red_star-s0-0")).astype(int)
  # From 8 bits of the small image, not from its floats.
  assert np.abs(large - samples.images[0]).mean() < 8
  with pytest.raises(ValueError, match="^--stages is 'base', expected FIRST:L"):
    call(f"--prompt={STAR}", "--stages=base")


def test_weights_of_a_part_can_be_others(config):
  """Here those that the config itself names, moved away from it."""
  names = ("text", "base", "larger")
  files = {n: config.parent / f"{n}.safetensors" for n in names}
  away = {f"{n}.weights": "nowhere.safetensors" for n in names}
  draw = lambda **how: (
    imagen_jax.load(str(config), **how).sample(STAR, progress=False).arrays
  )
  moved = draw(weights=files, overrides=away)
  np.testing.assert_array_equal(moved, draw())
  with pytest.raises(ValueError, match="^weights names 'x', expected one of b"):
    imagen_jax.load(str(config), weights={"x": "y"})


def test_a_file_of_prompts(call, tmp_path):
  path = tmp_path / "prompts.txt"
  text = f"\ufeff{STAR}\n\n  \nein grüner Kreis\n{CIRCLE}"
  path.write_text(text, encoding="utf-8")
  folder = call(f"--prompts_file={path}", "--prompt=a dog")
  (name,) = folder.glob("grid-*.png")
  with Image.open(name) as image:
    prompts = json.loads(image.text["prompt"])
  assert prompts == ["a dog", STAR, "ein grüner Kreis", CIRCLE]
  assert len(names(folder)) == 5


def test_other_settings_have_other_files(call):
  """Of the same prompt, seed and index, none is written over another."""
  changes = [
    ("--guidance=4", "--steps=2"),
    ("--config.base.sampling.step.kind=ddim",),
    ("--config.base.sampling.step.gamma=0.5",),
    ("--config.base.sampling.threshold.kind=static",),
    ("--config.larger.sampling.aug_level=0.3",),
    ("--negative_prompt=a dog",),
  ]
  for count, change in enumerate(((), *changes), start=1):
    folder = call(f"--prompt={STAR}", *change)
    assert len(names(folder)) == count, change
  assert set(stems(folder)) == {
    "a_red_star-s0-0", "a_red_star-s0-guidance4.0-steps2-0",
  }  # fmt: skip


def test_an_interrupted_call_resumes(call, tmp_path, monkeypatch):
  """What is finished stays, with its bytes, and is on the sheet."""
  run, made = Imagen._run, []
  args = (f"--prompt={STAR}", "--num_images=6", "--batch_size=4")

  def interrupted(self, request, *rest):
    if len(made) == 2:
      raise KeyboardInterrupt
    made.append(rest)
    return run(self, request, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(Imagen, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
      call(*args, outdir="cut")
  cut = tmp_path / "cut"
  assert stems(cut) == [f"a_red_star-s0-{i}" for i in range(4)]
  finished = {path.name: path.stat().st_mtime_ns for path in cut.iterdir()}
  whole = call(*args, outdir="whole")
  counts = []
  monkeypatch.setattr(
    Imagen, "_run", lambda *given: counts.append(given[-1]) or run(*given)
  )
  call(*args, outdir="cut")
  assert counts == [2, 2]  # two stages of one batch
  assert names(cut) == names(whole)
  for path in whole.iterdir():
    assert path.read_bytes() == (cut / path.name).read_bytes()
  for name, time in finished.items():
    assert (cut / name).stat().st_mtime_ns == time
  (cut / name).write_bytes(b"damaged")  # it is made again
  call(*args, outdir="cut")
  assert counts == [2, 2, 1, 1]


def test_newly_trained_weights_make_new_images(call, config, tmp_path):
  base = tmp_path / "base.safetensors"
  base.write_bytes((config.parent / "base.safetensors").read_bytes())
  args = (f"--prompt={STAR}", f"--config.base.weights={base}")
  assert len(names(call(*args))) == 1
  tensors = safetensors.numpy.load_file(base)
  safetensors.numpy.save_file({k: 1.5 * v for k, v in tensors.items()}, base)
  one, two = map(read, call(*args).iterdir())
  assert (one != two).any()


def test_a_long_prompt_is_cut_with_a_warning(config, call, run, tmp_path):
  start = "two red stars above a green circle " * 3
  args = (f"--config={config}", f"--outdir={tmp_path}/cut")
  done = run("sample", *args, f"--prompt={start} in the dark")
  assert done.returncode == 0, done.stderr
  (path,) = (tmp_path / "cut").iterdir()
  assert str(path) in done.stdout.splitlines()
  (warning,) = done.stderr.splitlines()
  left = re.fullmatch(r".* tokens long, 16 fit: cut after '(.*)'", warning)[1]
  assert left and left in start
  # What is cut makes no difference, nor does another process.
  (other,) = call(f"--prompt={start} at night").iterdir()
  assert np.abs(read(path).astype(int) - read(other)).max() <= 1


def test_two_verbs_and_two_cascades_in_one_process(config):
  """As a notebook or a server may have them."""
  code = """
import sys
import imagen_jax
assert "jax" not in sys.modules
import imagen_jax.sample, imagen_jax.evaluate
one = imagen_jax.load(sys.argv[1])
two = imagen_jax.load(sys.argv[1], overrides={"larger.sampling.steps": 2})
draw = lambda cascade: cascade.sample("a red star", progress=False).arrays
first, second, again = draw(one), draw(two), draw(one)
assert first.shape == second.shape == (1, 16, 16, 3)
assert (first == again).all() and (first != second).any()
print("sampled")
"""
  done = subprocess.run(
    [sys.executable, "-c", code, str(config)],
    env={k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout) == (0, "sampled\n"), done.stderr
