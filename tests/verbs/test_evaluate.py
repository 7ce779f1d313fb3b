"""The verb evaluate: its results on any dataset and config, and bad input."""

import json
import sys
import types

import pytest
from PIL import Image

from imagen_jax.evals import lines

COUNT = 6


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
    (["--suite=none"], "--suite is 'none', expected shapes, or a .tsv or .csv"),
    (["--suite=shapes", "--sweep=steps=1"], "--sweep is given beside --suite,"),
    (["--against=a"], "--against is given without --suite, which it compares"),
    (["--suite=shapes", "--against={here}"], "{here} has no folder 00000, exp"),
    (["--images_per_prompt=0"], "--images_per_prompt is 0, expected at least"),
    (["--sweep=guidance", "--metrics=judge"], "--metrics has no distance, exp"),
  ],
)  # fmt: skip
def test_bad_input_is_one_line_and_makes_nothing(
  evaluate, args, here, more, said, monkeypatch
):
  monkeypatch.setitem(sys.modules, "matplotlib", types.ModuleType("mpl"))
  (here / "file").touch()
  more = [text.format(here=here) for text in more]
  _, err, code = evaluate(*args, f"--outdir={here}/none", *more)
  assert err.startswith(f"error: {said.format(here=here)}")
  assert (code, err.count("\n")) == (1, 1)
  assert not (here / "none").exists()


def test_a_sweep_without_matplotlib_names_the_extra(
  evaluate, args, here, monkeypatch
):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  more = ["--sweep=steps=1", f"--outdir={here}/none"]
  assert evaluate(*args, *more)[1:] == (
    "error: the package matplotlib is not installed, expected the extra plots: "
    "pip install 'imagen_jax[plots]'\n",
    1,
  )
