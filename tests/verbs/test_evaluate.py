"""The verb evaluate: its results on any dataset and config, and bad input."""

import contextlib
import io
import itertools
import json
import pathlib
import runpy
import subprocess
import sys
import time

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imagen_jax import evaluate, files, jobs
from imagen_jax.cascade import filled
from imagen_jax.cli import program
from imagen_jax.data.images import to_float
from imagen_jax.data.source import load_source
from imagen_jax.evals import features, lines
from imagen_jax.evals.drawn import real_image
from imagen_jax.imagen import Imagen
from imagen_jax.interop import inception
from imagen_jax.interop.weights import save_weights

DATASETS = pathlib.Path(__file__).parents[1] / "data" / "datasets.py"
write_dataset = runpy.run_path(str(DATASETS))["write_dataset"]
COUNT = 6


def call(*args: str) -> tuple[str, str, int | None]:
  """Calls the verb in this process; what it printed, and its exit code."""
  out, err, code = io.StringIO(), io.StringIO(), None
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      with program.as_exit_codes():
        evaluate.main([*args])
    except SystemExit as end:
      code = end.code
  return out.getvalue(), err.getvalue(), code


@pytest.fixture(scope="module")
def outdir(here):
  return here / "evaluation" / "new"


@pytest.fixture(scope="module")
def args(here, config):
  return [
    f"--config={config}",
    "--config.text.length=40",
    "--dataset=captioned_shapes/tiny",
    f"--data_dir={here}/data",
    "--batch_size=4",
  ]


@pytest.fixture(scope="module")
def printed(run_each, args, outdir):
  """What a run with random weights prints, on one device."""
  more = [f"--num_images={COUNT}", f"--outdir={outdir}"]
  done = run_each("evaluate", [[*args, *more]])
  assert done.stderr == "" and "exit" not in done.stdout
  return done.stdout


@pytest.fixture(scope="module")
def report(printed, outdir):
  return json.loads((outdir / "test.json").read_text())


def test_the_report_is_printed_and_says_what_of(printed, report):
  assert printed.endswith(json.dumps(report, indent=2) + "\n")
  settings = {key: report[key] for key in ("split", "num_images", "seed")}
  assert settings == {"split": "test", "num_images": COUNT, "seed": 0}
  assert report["config"]["text"]["length"] == 40
  assert report["trained_steps"] == {"base": "unknown", "larger": "unknown"}
  assert [*report["weights"]] == ["base", "larger", "text"]


def test_a_line_is_the_report_by_checksums(report, outdir):
  (line,) = lines.read(outdir / lines.FILE).values()
  assert line == {k: v for k, v in report.items() if k != "config"}
  listed = json.loads((outdir / "test-captions.json").read_text())
  assert line["captions_sha256"] == lines.checksum(listed["captions"])
  assert listed["seed"] == line["captions_seed"] == 0
  assert len(listed["captions"]) == COUNT


def test_claims_hold_of_real_pictures_and_not_of_noise(report):
  shares = report["claims_that_hold"]
  assert shares["real"]["all"] > 0.97
  for drawn in ("generated", "generated, other caption"):
    assert shares[drawn].keys() == shares["real"].keys()
    assert shares[drawn]["all"] < 0.5


def test_shares_have_intervals(report):
  shares, intervals = report["claims_that_hold"], report["claims_that_hold_95"]
  assert shares.keys() == intervals.keys()
  for name, of_kinds in shares.items():
    assert of_kinds.keys() == intervals[name].keys()
    for kind, (low, high) in intervals[name].items():
      assert low <= of_kinds[kind] <= high and low < high, (name, kind)
  widths = {k: v[1] - v[0] for k, v in intervals["generated"].items()}
  assert min(widths, key=widths.get) == "all"  # of most claims


def test_noise_is_far_from_the_real_pictures_of_the_split(report):
  found = report["frechet_pixels"]
  assert found["distance"] > 1
  assert found["num_images"] == [COUNT, 16]
  assert found["dimension"] == 768 and found["rank_deficient"]


def test_every_stage_has_its_losses(report):
  assert list(report["loss"]) == ["base", "larger"]
  for losses in report["loss"].values():
    own, other = losses["own_caption"], losses["other_caption"]
    assert own > 0 and other > 0
    assert own != other  # nets with random weights heed their text, too
    assert 0 < losses["own_lower"] < 1


def test_the_sheet_shows_every_picture(report, outdir):
  with Image.open(outdir / "test.png") as image:
    assert image.size == (8 * (8 + 2) - 2, 8)  # every other pixel of 16x16
    assert len(json.loads(image.text["captions"])) == COUNT


@pytest.mark.parametrize(
  ("more", "said"),
  [
    (["--num_images=1"], "--num_images is 1, expected at least 2"),
    (["--num_reference=1"], "--num_reference is 1, expected at least 2"),
    (["--outdir={here}/file/new"], "outdir {here}/file/new cannot be writt"),
    (["--split=val"], "captioned_shapes/tiny has no split 'val', only tra"),
    (["--reference_split=a"], "captioned_shapes/tiny has no split 'a', only"),
    (["--metrics=judge,fd"], "--metrics has 'fd', expected some of judge, los"),
    (["--metrics=fid"], "--metrics has fid, which needs --inception"),
    (["--inception={here}/no.pb"], "weights {here}/no.pb cannot be read: No s"),
    (["--stages=large:"], "stages names 'large', expected one of base, larger"),
    (["--stages=:base", "--metrics=frechet_pixels"],
     "--metrics has frechet_pixels, which needs images of at least 16 pixels"),
    (["--dataset=captioned_shapes/endless"],
     "--reference_split is 'test' of captioned_shapes/endless, which has no e"),
    (["--sweep=stepps=1,2"], "--sweep has the point stepps=1: unknown config "),
    (["--sweep=steps=0"], "--sweep has the point steps=0: config base.samplin"),
    (["--sweep=sampler=euler"], "--sweep has the point sampler=euler: config"),
    (["--sweep=guidance", "--guidance=2"], "--guidance is given beside --swee"),
    (["--sweep=guidance", "--metrics=judge"], "--metrics has no distance, exp"),
  ],
)  # fmt: skip
def test_bad_input_is_one_line_and_makes_nothing(args, here, more, said):
  (here / "file").touch()
  more = [text.format(here=here) for text in more]
  _, err, code = call(*args, f"--outdir={here}/none", *more)
  assert err.startswith(f"error: {said.format(here=here)}")
  assert (code, err.count("\n")) == (1, 1)
  assert not (here / "none").exists()


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


@pytest.fixture
def requests(monkeypatch):
  """Makes nets give noise without being compiled; collects the requests."""
  found = []

  def noise(imagen, batches, keep_text):
    del keep_text
    request = batches.request
    found.append(request)
    parts = [imagen.names[i] for i in request.stages]
    parts += ["text"] if imagen.reads_text else []
    identities = {part: imagen._parts.identity(part) for part in parts}
    settings = imagen._made_with(request, identities)
    size = imagen.cascade.stages[request.stages[-1]].size
    for batch in itertools.chain(*batches.rounds()):
      rows = filled(batch, batches.size)
      draw = lambda row: np.random.default_rng(row.index).uniform(
        -1, 1, (size, size, 3)
      )
      made = np.stack([draw(rows[i]) for i in batches.held])
      yield batch, {parts[-1]: made}, settings

  monkeypatch.setattr(Imagen, "_batches", noise)
  return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """A prepared dataset without scenes: 12 images that are not square."""
  rng = np.random.default_rng(0)

  def image():
    file, size = io.BytesIO(), (20, 24, 3)
    Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)).save(
      file, "png"
    )
    return file.getvalue()

  records = [
    {"image": image(), "caption": f"photo {i}".encode()} for i in range(12)
  ]
  return write_dataset(tmp_path_factory.mktemp("photos"), records)


def evaluated(*args, outdir):
  """Calls the verb, which succeeds; its report."""
  out, err, code = call(*args, f"--outdir={outdir}")
  assert (err, code) == ("", None), out
  return json.loads((outdir / "train.json").read_text()), out


def test_fid_of_any_dataset_and_resumed(
  config, photos, tmp_path, tiny_inception, requests, monkeypatch
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
      call(*args, f"--outdir={tmp_path}/out", "--metrics=fid")
  assert len(requests) == 1
  more = ["--metrics=fid,frechet_pixels", "--batch_size=3"]
  report, out = evaluated(*args, *more, outdir=tmp_path / "out")
  assert "real images 12/12" in out
  fid = report["fid"]
  assert fid["num_images"] == [8, 12] and fid["dimension"] == 5
  assert fid["distance"] > 0 and not fid["rank_deficient"]
  assert fid["resize"] == "tf1" and len(fid["weights"]) == 64
  assert report["frechet_pixels"]["rank_deficient"]
  assert "claims_that_hold" not in report and "loss" not in report
  again, out = evaluated(*args, *more, outdir=tmp_path / "out")
  assert again == report and "real images" not in out
  assert len(requests) == 1  # no image is sampled again
  assert len(lines.read(tmp_path / "out" / lines.FILE)) == 1
  # All from the start, in batches of another size.
  other, _ = evaluated(*args, more[0], outdir=tmp_path / "other")
  assert other["id"] == report["id"]
  for metric in ("fid", "frechet_pixels"):
    expected = pytest.approx(report[metric]["distance"], rel=1e-5)
    assert other[metric]["distance"] == expected


def test_a_stage_alone(
  here, config, photos, tmp_path, tiny_inception, requests
):
  report, _ = evaluated(
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
  config, photos, tmp_path, requests
):
  report, _ = evaluated(
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
  config, photos, tmp_path, requests, monkeypatch
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
    assert call(*args)[2] == 130
  found = lines.read(tmp_path / lines.FILE)
  assert len(requests) == len(found) == 3
  out, err, code = call(*args)
  assert (err, code) == ("", None), out
  points = [
    line["point"] for line in lines.read(tmp_path / lines.FILE).values()
  ]
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
