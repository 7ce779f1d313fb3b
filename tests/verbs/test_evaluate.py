"""The verb evaluate: its report, its sheet of images, and bad input to it."""

import json

import pytest
from PIL import Image

COUNT = 6


@pytest.fixture(scope="module")
def outdir(here):
  return here / "evaluation" / "new"


@pytest.fixture(scope="module")
def done(here, config, outdir, run_each):
  """A run with random weights that succeeds, and three that do not."""
  args = [
    f"--config={config}",
    "--config.text.length=40",
    "--dataset=captioned_shapes/tiny",
    f"--data_dir={here}/data",
    "--batch_size=4",
  ]
  good = [*args, f"--num_images={COUNT}", f"--outdir={outdir}"]
  (here / "file").touch()
  bad = (
    [f"--outdir={outdir}", "--num_images=1"],
    [f"--outdir={here}/file/new"],
    [f"--outdir={here}/none", "--split=val"],
  )
  return run_each("evaluate", [good, *([*args, *more] for more in bad)])


@pytest.fixture(scope="module")
def report(done, outdir):
  return json.loads((outdir / "test.json").read_text())


def test_the_report_is_printed_and_says_what_of(done, report):
  assert json.dumps(report, indent=2) in done.stdout
  settings = {key: report[key] for key in ("split", "num_images", "seed")}
  assert settings == {"split": "test", "num_images": COUNT, "seed": 0}
  assert report["config"]["text"]["length"] == 40
  assert report["trained_steps"] == {"base": "unknown", "larger": "unknown"}


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


def test_noise_is_far_from_real_pictures(report):
  found = report["frechet_pixels"]
  assert found["distance"] > 1
  assert found["num_images"] == [COUNT, COUNT]
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


def test_bad_input_is_one_line_and_makes_nothing(done, here):
  file = here / "file"
  assert done.stderr.splitlines() == [
    "error: --num_images is 1, expected at least 2",
    f"error: outdir {file}/new cannot be written: Not a directory",
    "error: captioned_shapes/tiny has no split 'val', only train, test, "
    "test_unseen: change --split",
  ]
  assert done.stdout.splitlines().count("exit 1") == 3
  assert not (here / "none").exists()
