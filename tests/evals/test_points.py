"""Points of a sweep: their values, their stages and their names."""

import pytest

from imagen_jax.evals import points

PAPER = [1, 1.25, 1.5, 1.75, 2, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
  ("sweeps", "expected"),
  [
    ([], [{}]),
    (["guidance"], [{"guidance": w} for w in PAPER]),
    (["steps=25, 50"], [{"steps": 25}, {"steps": 50}]),
    (["sampler=a++,b"], [{"sampler": "a++"}, {"sampler": "b"}]),
    (["sr.aug_level=.1"], [{"sr.aug_level": 0.1}]),
    (
      ["guidance=1,2", "threshold=none,static"],
      [
        {"guidance": 1, "threshold": "none"},
        {"guidance": 1, "threshold": "static"},
        {"guidance": 2, "threshold": "none"},
        {"guidance": 2, "threshold": "static"},
      ],
    ),
  ],
)  # fmt: skip
def test_all_combinations(sweeps, expected):
  assert points.parse(sweeps) == expected


@pytest.mark.parametrize(
  ("sweeps", "said"),
  [
    (["steps"], "--sweep is 'steps', expected KEY=V1,V2,"),
    (["steps="], "--sweep is 'steps=', expected KEY"),
    (["=1,2"], "--sweep is '=1,2', expected KEY"),
    (["a b=1"], "--sweep is 'a b=1', expected KEY"),
    (["steps=5,5"], "--sweep has 'steps=5,5' twice, or one of its values"),
    (["steps=5", "steps=6"], "--sweep has 'steps=6' twice"),
  ],
)
def test_what_is_no_sweep(sweeps, said):
  with pytest.raises(ValueError, match=said):
    points.parse(sweeps)


NAMES = ("base", "sr")


@pytest.mark.parametrize(
  ("point", "expected"),
  [
    ({"guidance": 2}, [("base", "guidance", 2)]),
    ({"aug_level": 0.1}, [("sr", "aug_level", 0.1)]),
    ({"steps": 9}, [("base", "steps", 9), ("sr", "steps", 9)]),
    ({"sr.guidance": 3}, [("sr", "guidance", 3)]),
    ({"threshold.p": 90}, [(n, "threshold.p", 90) for n in NAMES]),
    ({"sr.threshold.p": 90}, [("sr", "threshold.p", 90)]),
  ],
)
def test_a_key_is_for_the_stages_that_it_concerns(point, expected):
  found = points.changes(point, NAMES, guided=["base"], upsamples=["sr"])
  assert [*found] == expected


def test_a_key_that_concerns_no_stage():
  with pytest.raises(ValueError, match="'guidance', which concerns no stage"):
    [*points.changes({"guidance": 2}, NAMES, [], [])]


def test_labels_are_file_names():
  point = {"guidance": 1.25, "sampler": "dpm_solver++", "x": "a/b"}
  assert points.label(point) == "guidance=1.25-sampler=dpm_solver++-x=a_b"
