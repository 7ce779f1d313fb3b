"""The plot of a sweep."""

import pytest
from etils import epath
from PIL import Image

from imagen_jax.evals import plots


def line(point, distance, share=None, metric="fid"):
  found = {
    "point": point,
    metric: {"distance": distance, "num_images": [9, 99]},
  }
  if share is not None:
    found["claims_that_hold"] = {"generated": {"all": share}}
    found["claims_that_hold_95"] = {"generated": {"all": [share / 2, 1.0]}}
  return found


def test_curves_are_of_the_first_key():
  lines = [
    line({"guidance": w, "sampler": s}, 10 - w, w / 10)
    for w in (1, 2)
    for s in ("ddim", "ancestral")
  ]
  across, up, found = plots.curves(lines)
  assert (across, up) == ("claims that hold (95 % interval)", "FID, 9 images")
  assert found == {
    f"sampler={s}": [(1, 0.1, 9, 0.05, 1.0), (2, 0.2, 8, 0.1, 1.0)]
    for s in ("ddim", "ancestral")
  }


def test_the_axis_is_the_clip_score_where_it_is_measured():
  """Beside a judge, too, as in the paper's figures."""
  of_clip = lambda score: {
    "clip": {"model": "ViT-L/14", "score": score, "standard_error": 0.01}
  }
  lines = [line({"w": w}, 9 - w, 0.5) | of_clip(w / 10) for w in (1, 2)]
  across, _, found = plots.curves(lines)
  assert across == "CLIP score of ViT-L/14 (95 % interval)"
  for point, w in zip(found[""], (1, 2), strict=True):
    expected = (w, w / 10, 9 - w, w / 10 - 0.0196, w / 10 + 0.0196)
    assert point == pytest.approx(expected)


@pytest.mark.parametrize("values", [(0.1, 0.3), ("none", "static")])
def test_without_a_judge_the_axis_is_the_key(values):
  lines = [line({"key": v}, 3, metric="frechet_pixels") for v in values]
  across, _, found = plots.curves(lines)
  assert across == "key"
  expected = (0, 1) if isinstance(values[0], str) else values
  assert tuple(point[1] for point in found[""]) == expected


def test_the_plot_is_a_png(tmp_path):
  pytest.importorskip("matplotlib")
  path = epath.Path(tmp_path / "new" / "plot.png")
  plots.pareto([line({"w": w}, w, 0.5) for w in (1, 2)], path)
  with Image.open(path) as image:
    assert image.size == (840, 600)


def test_a_sweep_without_a_distance():
  with pytest.raises(ValueError, match="no distance to plot"):
    plots.curves([{"point": {"w": 1}}])
