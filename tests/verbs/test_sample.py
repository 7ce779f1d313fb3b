"""The verb sample: what it writes, and what a picture depends on."""

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
from PIL import Image

import imagen_jax
from imagen_jax import build, samples
from imagen_jax.data.images import to_uint8
from imagen_jax.imagen import Imagen
from imagen_jax.interop import published

STAR, CIRCLE = "a red star", "two blue circles above a square"


def names(folder) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def read(path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image)


def test_one_prompt_is_one_picture(call, config, capsys):
  folder = call(f"--prompt={STAR}", "--seed=3")
  assert names(folder) == ["a_red_star-s3-0.png"]
  with Image.open(folder / "a_red_star-s3-0.png") as image:
    assert (image.size, image.mode) == ((16, 16), "RGB")
    assert np.asarray(image).std() > 10
    note = image.text
  settings = json.loads(note.pop("config"))
  expected = runpy.run_path(str(config))["get_config"]()
  assert note == {"prompt": STAR, "seed": "3", "index": "0"}
  assert settings == json.loads(expected.to_json_best_effort())
  lines = capsys.readouterr().out.splitlines()
  for start in ("started in", "  text: 1 prompt(s)", "  base: 8x8 in "):
    assert any(line.startswith(start) for line in lines), start
  assert "sample 1/1" in lines  # no speed: the compiler took most of it
  assert lines[-2] == str(folder / "a_red_star-s3-0.png")


def test_the_same_seed_gives_the_same_file(call):
  name = "a_red_star-s0-0.png"
  first = call(f"--prompt={STAR}", outdir="first") / name
  second = call(f"--prompt={STAR}", "--seed=0", outdir="second") / name
  assert first.read_bytes() == second.read_bytes()


def test_seed_guidance_and_steps_matter_and_are_noted(call):
  plain = read(call(f"--prompt={STAR}", outdir="plain") / "a_red_star-s0-0.png")
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
  for name in ("a_red_star-s0-0.png", "a_dog-s0-0.png"):
    np.testing.assert_array_equal(read(first / name), read(last / name))
  # Alone it is made by the same program, whose batch is filled up.
  alone = read(call(f"--prompt={STAR}", outdir="alone") / "a_red_star-s0-0.png")
  together = read(first / "a_red_star-s0-0.png")
  np.testing.assert_array_equal(alone, together)


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
  with pytest.raises(ValueError, match="^hf://a/b names no part of a repo"):
    call(f"--prompt={STAR}", "--config.larger.weights=hf://a/b")


def test_weights_of_the_hub_may_lie_in_a_folder(call, config, tmp_path):
  plain = read(call(f"--prompt={STAR}", outdir="plain") / "a_red_star-s0-0.png")
  (tmp_path / "repos").mkdir()
  (tmp_path / "repos" / "demo").symlink_to(config.parent)
  moved = [
    f"--config.{part}.weights=hf://someone/demo@v1/{part}.safetensors"
    for part in ("text", "base", "larger")
  ]
  args = (f"--prompt={STAR}", *moved)
  folder = call(*args, f"--weights={tmp_path}/repos", outdir="moved")
  np.testing.assert_array_equal(read(folder / "a_red_star-s0-0.png"), plain)
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError) as caught:
    call(*args, f"--weights={tmp_path}/empty")
  said = f"folder {tmp_path}/empty has no demo, expected a copy of someone/demo"
  assert str(caught.value) == said


def test_more_pictures_than_a_batch_holds(call):
  pair = (f"--prompt={STAR}", f"--prompt={CIRCLE}", "--num_images=3")
  folder = call(*pair)
  stems = ("a_red_star", "two_blue_circles_above_a_square")
  pictures = [
    read(folder / f"{stem}-s0-{i}.png") for stem in stems for i in range(3)
  ]
  assert len(names(folder)) == 7
  assert len({picture.tobytes() for picture in pictures}) == 6
  (name,) = folder.glob("grid_????????-s0.png")
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
  assert names(one) == ["a_red_star-s0-2.png"]
  last = read(one / "a_red_star-s0-2.png")
  np.testing.assert_array_equal(last, samples.images[2])
  first = call(f"--prompt={STAR}", "--stages=:base", outdir="first")
  small = read(first / "a_red_star-s0-0.png")
  expected = to_uint8(samples.stages["base"][0])
  np.testing.assert_array_equal(small, expected)
  args = ("--stages=larger:", f"--image={first}/a_red_star-s0-0.png")
  second = call(f"--prompt={STAR}", *args, outdir="second")
  large = read(second / "a_red_star-s0-0.png").astype(int)
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
  (name,) = folder.glob("grid_*.png")
  with Image.open(name) as image:
    prompts = json.loads(image.text["prompt"])
  assert prompts == ["a dog", STAR, "ein grüner Kreis", CIRCLE]
  assert len(names(folder)) == 5


def test_different_prompts_have_different_files():
  """In this run and in later ones: a stem is of the prompt alone."""
  long = "x" * 70
  prompts = ["A red star!", "a red star", long + "y", long, "★", "☆", "a  red"]
  stems = [samples.file_stem(prompt) for prompt in prompts]
  assert len(set(stems)) == len(prompts)
  assert stems[1] == "a_red_star"
  assert re.fullmatch("a_red_star_[0-9a-f]{8}", stems[0])
  assert re.fullmatch("[0-9a-f]{8}", stems[4])
  assert max(map(len, stems)) <= 69


def test_other_settings_have_other_files(call):
  call(f"--prompt={STAR}")
  folder = call(f"--prompt={STAR}", "--guidance=4", "--steps=2")
  more = "a_red_star-s0-guidance4.0-steps2-0.png"
  assert names(folder) == ["a_red_star-s0-0.png", more]


def test_pictures_are_written_as_they_are_made(call, tmp_path, monkeypatch):
  """What is done stays done when the rest cannot be."""
  run, stages = Imagen._run, []

  def run_two(*args):
    if len(stages) == 2:
      raise KeyboardInterrupt
    stages.append(args)
    return run(*args)

  monkeypatch.setattr(Imagen, "_run", run_two)
  with pytest.raises(KeyboardInterrupt):
    call(f"--prompt={STAR}", "--num_images=6", "--batch_size=4", outdir="cut")
  assert names(tmp_path / "cut") == [f"a_red_star-s0-{i}.png" for i in range(4)]


def test_a_long_prompt_is_cut_with_a_warning(config, call, run, tmp_path):
  start = "two red stars above a green circle " * 3
  args = (f"--config={config}", f"--outdir={tmp_path}/cut")
  done = run("sample", *args, f"--prompt={start} in the dark")
  assert done.returncode == 0, done.stderr
  (path,) = (tmp_path / "cut").iterdir()
  assert str(path) in done.stdout.splitlines()
  (warning,) = done.stderr.splitlines()
  left = re.fullmatch(r'.* tokens long, 16 fit: cut to "(.*)"', warning)[1]
  assert start.startswith(left)
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
