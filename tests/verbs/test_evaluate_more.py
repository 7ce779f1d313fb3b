"""The verb evaluate on any dataset, and its sweeps and suites."""

import json
import subprocess
import sys
import time

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import files, jobs
from imagen_jax.data.images import to_float
from imagen_jax.data.source import load_source
from imagen_jax.evals import features, lines
from imagen_jax.evals.drawn import real_image
from imagen_jax.interop import inception
from imagen_jax.interop.weights import save_weights


class Tiny(nn.Module):
  """A net with the interface of InceptionV3 and 5 features."""

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", nn.initializers.zeros, (3, 5))
    return {"2048": x[:, ::50, ::50].mean((1, 2)) @ kernel}


@pytest.fixture
def tiny_inception(tmp_path, monkeypatch):
  """Weights of Tiny, which stands for Inception."""
  monkeypatch.setattr(features, "InceptionV3", Tiny)
  monkeypatch.setattr(inception, "InceptionV3", Tiny)
  path = tmp_path / "inception.safetensors"
  kernel = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  save_weights(path, {"kernel": kernel}, dtype=None)
  return path


def test_inception_runs_on_all_devices(tiny_inception):
  """And its features are those of any number of images."""
  params = inception.load(tiny_inception)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (5, 40, 30, 3)).astype(np.uint8)
  for resize in features.RESIZES:
    found = features.inception_extractor(params, "", resize).compute(images)
    one = jnp.concatenate(
      [
        features.inception_features(params, image[None], resize)["2048"]
        for image in images
      ]
    )
    np.testing.assert_allclose(found, one, atol=1e-5)


def evaluated(call, *args, outdir):
  """Calls the verb, which succeeds; its report."""
  out, err, code = call(*args, f"--outdir={outdir}")
  assert (err, code) == ("", None), out
  return json.loads((outdir / "train.json").read_text()), out


def test_fid_of_any_dataset_and_resumed(
  evaluate, config, photos, tmp_path, tiny_inception, requests, monkeypatch
):
  args = [
    f"--config={config}",
    f"--dataset={photos}",
    "--split=train",
    "--num_images=8",
    f"--inception={tiny_inception}",
  ]
  with monkeypatch.context() as patch:  # ends after the samples
    patch.setattr(jobs, "read_image", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      evaluate(*args, f"--outdir={tmp_path}/out", "--metrics=fid")
  assert len(requests) == 1
  more = ["--metrics=fid,frechet_pixels", "--batch_size=3"]
  report, out = evaluated(evaluate, *args, *more, outdir=tmp_path / "out")
  assert "real images 12/12" in out
  fid = report["fid"]
  assert fid["num_images"] == [8, 12] and fid["dimension"] == 5
  assert fid["distance"] > 0 and not fid["rank_deficient"]
  assert fid["resize"] == "tf1" and len(fid["weights"]) == 64
  assert report["frechet_pixels"]["rank_deficient"]
  assert "claims_that_hold" not in report and "loss" not in report
  again, out = evaluated(evaluate, *args, *more, outdir=tmp_path / "out")
  assert again == report and "real images" not in out
  assert len(requests) == 1  # no image is sampled again
  assert len(lines.read(tmp_path / "out" / lines.FILE)) == 1
  # All from the start, in batches of another size.
  other, _ = evaluated(evaluate, *args, more[0], outdir=tmp_path / "other")
  assert other["id"] == report["id"]
  for metric in ("fid", "frechet_pixels"):
    expected = pytest.approx(report[metric]["distance"], rel=1e-5)
    assert other[metric]["distance"] == expected


def test_a_stage_alone(
  evaluate, here, config, photos, tmp_path, tiny_inception, requests
):
  report, _ = evaluated(
    evaluate,
    f"--config={here}/tiny.py",
    f"--config.weights={config.with_name('base.safetensors')}",
    f"--dataset={photos}",
    "--split=train",
    "--num_images=4",
    f"--inception={tiny_inception}",
    "--metrics=fid",
    outdir=tmp_path,
  )
  assert report["stages"] == ["stage"] and report["resolution"] == 8
  assert [*report["weights"]] == ["stage", "text"]
  assert requests[0].prompts == tuple(
    json.loads((tmp_path / "train-captions.json").read_text())["captions"]
  )


def test_a_stage_that_upsamples_gets_real_images(
  evaluate, config, photos, tmp_path, requests
):
  report, _ = evaluated(
    evaluate,
    f"--config={config}",
    f"--dataset={photos}",
    "--split=train",
    "--num_images=4",
    "--stages=larger:",
    "--metrics=frechet_pixels",
    outdir=tmp_path,
  )
  assert report["stages"] == ["larger"] and "base" not in report["weights"]
  listed = json.loads((tmp_path / "train-captions.json").read_text())
  source = load_source(str(photos), "train", "", features=("image",))
  expected = [real_image(source[i], 8) for i in listed["records"]]
  np.testing.assert_array_equal(
    requests[0].lowres, [to_float(image) for image in expected]
  )


def test_a_sweep_resumes_and_skips_its_points(
  evaluate, config, photos, tmp_path, requests, monkeypatch
):
  args = [
    f"--config={config}",
    f"--dataset={photos}",
    "--split=train",
    "--num_images=4",
    "--sweep=guidance=1,2",
    "--sweep=threshold=static,dynamic",
    "--metrics=frechet_pixels",
    "--noplot",
    f"--outdir={tmp_path}",
  ]
  write = files.write

  def killed(path, *rest, **more):
    if str(path).endswith("guidance=2-threshold=static.png"):
      raise KeyboardInterrupt
    write(path, *rest, **more)

  with monkeypatch.context() as patch:  # in the third of four points
    patch.setattr(files, "write", killed)
    assert evaluate(*args)[2] == 130
  found = lines.read(tmp_path / lines.FILE)
  assert len(requests) == len(found) == 3
  out, err, code = evaluate(*args)
  assert (err, code) == ("", None), out
  found = lines.read(tmp_path / lines.FILE).values()
  points = [line["point"] for line in found]
  assert points == [
    {"guidance": w, "threshold": kind}
    for w in (1, 2)
    for kind in ("static", "dynamic")
  ]
  assert len(requests) == 4
  for request, point in zip(requests, points, strict=True):
    for sampling in request.samplings:
      assert sampling.guidance == point["guidance"]
      name = type(sampling.threshold).__name__
      assert name.lower() == f"{point['threshold']}threshold"
  shown = [line for line in out.splitlines() if line.startswith("sweep ")]
  assert len(shown) == 4 and "guidance=2-threshold=static  frechet" in shown[2]
  assert len({line["config_sha256"] for line in found}) == 4
  assert len(list((tmp_path / "images").iterdir())) == 4


def test_a_suite_is_sampled_and_compared(evaluate, config, tmp_path, requests):
  suite = tmp_path / "suite.tsv"
  suite.write_text("Colors\ta red star\nCounting\ttwo stars\n")
  args = [f"--config={config}", f"--suite={suite}", "--images_per_prompt=3"]
  one, two = tmp_path / "one", tmp_path / "two"
  out, err, code = evaluate(*args, f"--outdir={one}")
  assert (err, code) == ("", None), out
  out, err, code = evaluate(
    *args, "--guidance=3", f"--against={one}", f"--outdir={two}"
  )
  assert (err, code) == ("", None), out
  for request in requests:
    assert request.prompts == ("a red star", "two stars")
    assert [row.index for row in request.rows] == [0, 1, 2] * 2
  assert json.loads((two / "suite.json").read_text())["guidance"] == 3
  assert len((two / "prompts.tsv").read_text().splitlines()) == 7
  page = (two / "comparison.html").read_text()
  assert page.count("data:image/png") == 12
  assert str(one) in page and "@DATA@" not in page
  assert not (one / "comparison.html").exists()
  out, err, code = evaluate(*args, f"--outdir={one}")
  assert len(requests) == 2  # images that are finished stay
  suite.write_text("Colors\ta red star\nCounting\tthree stars\n")
  _, err, code = evaluate(*args, f"--against={one}", f"--outdir={two}")
  assert code == 1 and len(requests) == 2
  assert err.startswith("error: prompt 1 of the models is 'three stars' and")


@pytest.mark.slow
def test_a_sweep_that_is_killed_has_the_lines_of_one_that_is_not(
  here, config, tmp_path
):
  """kill -9 in the second of three points, then the same command."""
  args = [
    f"--config={config}",
    "--dataset=captioned_shapes/tiny",
    f"--data_dir={here}/data",
    "--num_images=12",
    "--batch_size=2",
    "--config.text.length=40",
    "--sweep=base.guidance=1.5,2,4",
    "--noplot",
  ]
  words = [sys.executable, "-m", "imagen_jax.evaluate", *args]
  outdir = tmp_path / "killed"
  process = subprocess.Popen([*words, f"--outdir={outdir}"])
  second = outdir / "images" / "base.guidance=2"
  deadline = time.monotonic() + 300
  while len([*second.glob("*.png")]) < 4 and time.monotonic() < deadline:
    time.sleep(0.01)
  process.kill()
  process.wait()
  assert len(lines.read(outdir / lines.FILE)) == 1
  times = {p: p.stat().st_mtime_ns for p in outdir.glob("images/*/*.png")}
  assert 16 <= len(times) < 36
  for folder in (outdir, tmp_path / "whole"):
    assert subprocess.run([*words, f"--outdir={folder}"]).returncode == 0
  assert {path: path.stat().st_mtime_ns for path in times} == times
  killed, whole = (
    [*lines.read(folder / lines.FILE).values()]
    for folder in (outdir, tmp_path / "whole")
  )
  assert len(whole) == 3 and killed == whole
