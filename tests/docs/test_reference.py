"""The reference that docs/ makes from the code has all of it, and is right."""

import dataclasses
import json
import pathlib
import re
import sys
import xml.etree.ElementTree

import pytest

from imagen_jax import build
from imagen_jax.build import configs, defaults, diffusion, nets, runs
from imagen_jax.build.keys import fields
from imagen_jax.nets.efficient_unet import BlockSpec
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.training.setup import net_shapes

ROOT = pathlib.Path(__file__).parents[2]
MODULES = ("departures", "figures", "generate", "keys", "sizes", "verbs")


@pytest.fixture(scope="module")
def docs():
  """The modules of docs/, which are no package, by their names."""
  sys.path.insert(0, str(ROOT / "docs"))
  try:
    return {name: __import__(name) for name in MODULES}
  finally:
    sys.path.remove(str(ROOT / "docs"))
    for name in MODULES:
      sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def page(docs) -> str:
  return docs["keys"].page()


def classes() -> list[type]:
  """Returns every class whose fields are keys of a config."""
  kinds = (*diffusion.STAGE_KINDS.values(), *diffusion.SAMPLING_KINDS.values())
  options = [cls for kind in kinds for cls in kind.values()]
  options += [*nets.NETS.values(), *runs.OPTIMIZERS.values()]
  sections = [cls for cls, _, _ in defaults.SECTIONS.values()]
  return [*sections, *options, BlockSpec, T5Encoder]


@pytest.mark.parametrize("cls", classes())
def test_every_key_has_a_row_with_its_default(docs, page, cls):
  rows = docs["keys"].table(cls, None, {}, {})[2:-1]
  found = [re.match(r"\| `(\w+)`", row)[1] for row in rows]
  assert found == list(fields(cls))
  for name in found:
    assert f"| `{name}` |" in page
  about = docs["keys"].descriptions(cls)
  plain = {
    "num_heads",
    "num_encoder_layers",
    "activation",
  }  # the name states it
  assert [name for name in found if name not in about] == [
    name for name in found if name in plain
  ]


@pytest.mark.parametrize(
  "row",
  [
    "| `batch_size` | int | `2048` | at least 1 | examples in a batch,",
    "| `seed` | int | `0` | 0 to 4294967295 |",
    "| `text_drop` | float | `0.1` | 0 to 1 |",
    "| `prediction` | a name | `eps` | `eps`, `x`, `v` |",
    "| `step` | a `kind` | `ancestral` | `ddim`, `ancestral`,",
    "| `num_res_blocks` | int | `2` | 1 to 1,000 |",
    "| `size` | int | needed | at least 1 |",
    "| `b1` | float | `0.9` | at least 0, less than 1 |",
    "| `data` | int | `-1` | 1 or more, or -1 |",
  ],
)
def test_rows_are_right(page, row):
  assert row in page


def test_a_range_is_what_a_refusal_states(docs):
  @dataclasses.dataclass(frozen=True)
  class Settings:
    """Holds a number.

    Attributes:
      width: in pixels, over
        two lines.
    """

    width: int = 3
    other: int = 2  # beside
    # Above.
    third: float = 1.0

    def __post_init__(self):
      if self.width < 1:
        raise ValueError(f"width is {self.width}, expected at least 1")

  width, other, _ = dataclasses.fields(Settings)
  assert docs["keys"].accepted(Settings, width, Settings()) == "at least 1"
  assert docs["keys"].accepted(Settings, other, Settings()) == ""
  assert docs["keys"].attributes(Settings.__doc__) == {
    "width": "in pixels, over two lines."
  }


@pytest.mark.parametrize(
  ("verb", "row"),
  [
    ("train", "| `--workdir` | path | - |"),
    ("train", "| `--[no]dry_run` | bool | `False` |"),
    ("sample", "| `--prompt` | string | - |"),
    ("export", "| `--text` | `hugging_face`, `t5x` | - |"),
    ("compile", "| `--topology` | string | - |"),
    ("shapes.write_captions", "| `--each` | int | `1` |"),
  ],
)
def test_every_verb_and_its_flags_are_listed(docs, verb, row):
  _, _, section = docs["verbs"].page().partition(f"\n## {verb}\n")
  assert row in section.partition("\n## ")[0]


def test_every_verb_is_listed(docs):
  found = {
    path.stem
    for path in (ROOT / "imagen_jax").glob("*.py")
    if "\n@program.verb(" in path.read_text("utf-8")
  }
  assert found == set(docs["verbs"].VERBS)
  assert "repeat this option" not in docs["verbs"].page()  # absl's note


def test_every_mark_of_a_departure_is_listed(docs):
  count = 0
  for folder in ("imagen_jax", "configs"):
    for path in (ROOT / folder).rglob("*.py"):
      if "configs" not in path.relative_to(ROOT).parts[1:]:
        text = re.sub(r"\s*\n\s*#?\s*", " ", path.read_text("utf-8"))
        count += text.count("Not in the paper")
  assert count > 20
  assert docs["departures"].page(ROOT).count("\n- line ") == count


@pytest.mark.parametrize(
  ("source", "found"),
  [
    (
      '"""Does it.\n\nNot in the\npaper: a.\nB.\n\nC.\n"""',
      "Not in the paper: a. B.",
    ),
    ("x = 1\n# Not in the\n# paper: a.\ny = 2", "Not in the paper: a."),
    (
      '"""Does.\n\nArgs:\n  p: one. Not in\n    the paper: a.\n  q: two.\n"""',
      "`p`: Not in the paper: a.",
    ),
    (
      '"""Does. Not in the paper:\n\n* a\n  b\n* c\n"""',
      "Not in the paper:\n  - a b\n  - c",
    ),
    ('"""Nothing of the kind."""', None),
  ],
)
def test_a_mark_is_read_to_its_end(docs, tmp_path, source, found):
  path = tmp_path / "a.py"
  path.write_text(source)
  assert [text for _, text in docs["departures"].marks(path)] == (
    [found] if found else []
  )


@pytest.mark.parametrize(
  ("lines", "expected"),
  [
    (["Of |x| and *y_."], [r"Of \|x\| and \*y\_."]),
    (["Of `a*b`."], ["Of ``a*b``."]),
    (
      ["Do:", "", "  a *b", "End."],
      ["Do:", "", "::", "", "  a *b", "", "End."],
    ),
    (
      ["Text.", "* a", "  b", "Text."],
      ["Text.", "", "- a", "  b", "", "Text."],
    ),
    (["Args:", "  a: b*"], ["Args:", r"  a: b\*"]),
  ],
)
def test_docstrings_become_restructured_text(docs, lines, expected):
  assert docs["generate"].restructured(lines) == expected


@pytest.mark.parametrize(
  ("link", "expected"),
  [
    ("[a](docs/pods.md#b)", "[a](../pods.md#b)"),
    ("[a](launch/)", "[a](launch.md)"),
    ("[a](FAULTS.md)", "[a](faults.md)"),
    ("![a](docs/shapes.png)", "![a](../shapes.png)"),
    ("![a](docs/shapes.gif)", "![a](../shapes.gif)"),
    ("[a](setup.py)", "`setup.py`"),
    ("[a](https://x.y/z.md)", "[a](https://x.y/z.md)"),
    ("[a](#b)", "[a](#b)"),
  ],
)
def test_links_of_the_repository_become_links_of_the_site(docs, link, expected):
  page = ROOT / "docs" / "generated" / "readme.md"
  assert docs["generate"].relink(link, ROOT / "README.md", page) == expected


def test_every_module_has_a_place_in_the_reference(docs):
  parts = docs["generate"].packages()
  assert "imagen_jax.diffusion.guidance" in parts["diffusion"]
  assert "imagen_jax.stage" in parts["imagen_jax"]
  files = [
    path
    for path in (ROOT / "imagen_jax").rglob("*.py")
    if "configs" not in path.parts and path.parent.name != "imagen_jax"
  ]
  listed = {name for names in parts.values() for name in names}
  for path in files:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert name.removesuffix(".__init__") in listed


@pytest.mark.parametrize("name", ["shapes16", "shapes64", "shapes256"])
def test_a_figure_has_the_blocks_that_the_net_has(docs, name):
  config = configs.resolve(name, None)
  stage = build.stage(config.stage)
  params = net_shapes(stage, build.text(config.text))
  found = docs["figures"].levels(stage)
  for i, level in enumerate(found):
    ways = {}
    for way, letter in (("down", "d"), ("up", "u")):
      if name == "shapes16":
        ways[way] = [k for k in params if re.match(rf"{way}_{i}_res_\d", k)]
        last = params[f"{way}_{i}_res_0"]
        attends = any(k.startswith(f"{way}_{i}_attn") for k in params)
      else:
        body = params[f"{letter}block_{i}"]["body"]
        ways[way] = [k for k in body if k.startswith("res_")]
        last, attends = body["res_0"], "attention" in body
      assert last["conv_1"]["kernel"].shape[-1] == level.width
      assert attends == bool(level.attention)
    assert len(ways["down"]) == level.down
    assert len(ways["up"]) == level.up


def test_figures_are_sound_and_have_their_numbers(docs):
  figure = docs["figures"].cascade("shapes")
  xml.etree.ElementTree.fromstring(figure)
  for text in ("shapes16", "UNet, 4.87M", "64 steps, Ancestral", "256 x 256"):
    assert f">{text}<" in figure
  figure = docs["figures"].net("shapes64")
  xml.etree.ElementTree.fromstring(figure)
  assert "attends to pixels + text" in figure


def test_sizes_of_a_stage(docs, monkeypatch):
  """Closed forms: 2 bytes a weight to sample in bfloat16, 16 with Adam."""
  monkeypatch.setattr(docs["sizes"], "STAGES", ("sr256", "shapes16"))
  large, small = list(docs["sizes"].stages())[2:]
  assert large == ("| `sr256` | 256x256 | 584M | 4.76B | 1.2 GB | 9.3 GB |\n")
  assert small.split(" | ")[2:] == ["4.87M", "0.526M", "19 MB", "78 MB |\n"]
  assert float(large.split()[-3]) == round(583_579_011 * 16 / 1e9, 1)
  assert float(small.split()[-3]) == round(4_874_755 * 16 / 1e6)


def test_every_compiled_program_has_its_size(docs):
  rows = json.loads((ROOT / "launch" / "compiled.json").read_text("utf-8"))
  lines = list(docs["sizes"].tpus(rows))[2:]
  assert len(lines) == len(rows)
  days = [f" {row['days']:.1f} " for row in rows if "days" in row]
  assert all(any(day in line for line in lines) for day in days)
