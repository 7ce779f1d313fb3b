"""The page of a comparison: its images, its order, and votes in Chromium."""

import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from etils import epath
from PIL import Image

from imagen_jax.evals import comparison
from imagen_jax.evals.intervals import wilson
from imagen_jax.evals.suites import Entry

PROMPTS = [("Colors", f"prompt {i} </script>") for i in range(3)]
PROMPTS += [("Text", f"prompt {i}") for i in range(3, 6)]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def rendered(folder, value, each=2, side=8):
  """Images of a model, which all have the value and the prompt's number."""
  found = []
  for number, (category, prompt) in enumerate(PROMPTS):
    paths = []
    for i in range(each):
      paths.append(epath.Path(folder / f"{value}-{number}-{i}.png"))
      pixels = np.full((side, side, 3), [value, number, i], np.uint8)
      Image.fromarray(pixels).save(paths[-1])
    found.append((Entry(category, prompt), paths))
  return found


def data_of(page):
  (text,) = re.findall(r'id="data">(.*?)</script>', page, re.S)
  return json.loads(text)


def pixel(source):
  data = base64.b64decode(source.partition(",")[2])
  with Image.open(io.BytesIO(data)) as image:
    return image.getpixel((0, 0)), image.size, image.format


@pytest.fixture
def models(tmp_path):
  return rendered(tmp_path, 10), rendered(tmp_path, 200, each=3)


def test_every_prompt_has_both_models_on_random_sides(models):
  page = comparison.page(*models, ("a", "b"), title="mine")
  found = data_of(page)["items"]
  assert sorted(item["number"] for item in found) == list(range(6))
  assert [item["number"] for item in found] != list(range(6))
  assert {item["swapped"] for item in found} == {True, False}
  for item in found:
    assert (item["category"], item["prompt"]) == PROMPTS[item["number"]]
    first, second = ("right", "left") if item["swapped"] else ("left", "right")
    for side, value in ((first, 10), (second, 200)):
      assert len(item[side]) == 2  # as many of both
      for i, source in enumerate(item[side]):
        expected = (value, item["number"], i)
        assert pixel(source) == (expected, (8, 8), "PNG")


def test_the_page_is_alone_and_prompts_end_no_script(models):
  page = comparison.page(*models, ("a", "b"), title="mine")
  assert not re.search(r"https?://|src=[\"'](?!data)", page)
  assert page.count("</script>") == 2
  again = comparison.page(*models, ("a", "b"), title="mine")
  assert page == again
  other = comparison.page(*models, ("a", "b"), title="mine", seed=1)
  assert data_of(other)["id"] != data_of(page)["id"]


def test_large_images_are_downsampled(tmp_path):
  models = [rendered(tmp_path, value, 1, side=600) for value in (10, 200)]
  page = comparison.page(*models, ("a", "b"), title="mine")
  _, size, kind = pixel(data_of(page)["items"][0]["left"][0])
  assert (size, kind) == ((512, 512), "JPEG")


def test_models_of_other_suites(models):
  first, second = models
  with pytest.raises(ValueError, match="images of 6 and 5 prompts, expected"):
    comparison.pair(first, second[:-1])
  with pytest.raises(ValueError, match="prompt 0 of the models is 'prompt 0"):
    comparison.pair(first, second[::-1])


def test_an_image_that_cannot_be_read(models):
  first, second = models
  first[0][1][0].write_bytes(b"no image")
  with pytest.raises(ValueError, match=r"image .*10-0-0.png cannot be read"):
    comparison.page(first, second, ("a", "b"), title="mine")


VOTE = """<script>
const key = name => document.dispatchEvent(
  new KeyboardEvent("keydown", {key: name, bubbles: true}));
for (const name of KEYS) key(name);
const out = document.createElement("pre");
out.id = "out";
out.textContent = JSON.stringify(results());
document.body.append(out);
</script>"""


def voted(page, keys, folder):
  """Presses keys on the page; its results and its text."""
  path = folder / "page.html"
  script = VOTE.replace("KEYS", json.dumps(keys))
  path.write_text(page.replace("</body>", script + "</body>"), "utf-8")
  words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
  words += [f"--user-data-dir={folder}/profile", "--dump-dom", f"file://{path}"]
  done = subprocess.run(words, capture_output=True, text=True, timeout=300)
  (text,) = re.findall(r'<pre id="out">(.*?)</pre>', done.stdout, re.S)
  text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
  return json.loads(text), done.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_votes_by_keys_in_chromium(models, tmp_path):
  page = comparison.page(*models, ("ours", "theirs"), title="mine")
  items = data_of(page)["items"]
  # Always the first model's side for quality; no difference for the match.
  keys = []
  for item in items:
    keys += ["3" if item["swapped"] else "1", "2"]
  found, dom = voted(page, keys, tmp_path)
  assert [vote["quality"] for vote in found["votes"]] == ["first"] * 6
  assert [vote["match"] for vote in found["votes"]] == ["same"] * 6
  assert [vote["prompt"] for vote in found["votes"]] == [p for _, p in PROMPTS]
  assert (found["first"], found["second"]) == ("ours", "theirs")
  quality = found["summary"]["quality"]
  assert quality["first"]["share"] == 1 and quality["count"] == 6
  np.testing.assert_allclose(quality["first"]["interval_95"], wilson(6, 6))
  np.testing.assert_allclose(quality["second"]["interval_95"], wilson(0, 6))
  assert found["categories"].keys() == {"Colors", "Text"}
  assert "ours" in dom and "100 %" in dom  # the table of results


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_part_of_the_votes_are_changed_in_chromium(models, tmp_path):
  """Two votes, one of them changed, and the third prompt is skipped."""
  page = comparison.page(*models, ("ours", "theirs"), title="mine")
  items = data_of(page)["items"]
  keys = ["1", "1", "3", "3", "ArrowLeft", "1", "ArrowRight", "ArrowRight", "2"]
  found, dom = voted(page, keys, tmp_path)
  by_number = {vote["number"]: vote for vote in found["votes"]}
  assert len(by_number) == 3
  second = by_number[items[1]["number"]]
  sides = ("first", "second")[:: -1 if items[1]["swapped"] else 1]
  assert (second["quality"], second["match"]) == sides
  assert "match" not in by_number[items[3]["number"]]
  held = [vote["quality"] for vote in found["votes"]].count("first")
  interval = found["summary"]["quality"]["first"]["interval_95"]
  np.testing.assert_allclose(interval, wilson(held, 3), atol=1e-12)
  assert "ours" not in dom.partition("<script")[0]  # blind before the end
