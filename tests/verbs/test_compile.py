"""The verb compile: what it prints and keeps; real compilations, where slow."""

import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from imagen_jax import compile
from imagen_jax.aot import programs, report, search
from imagen_jax.configs import base_64, imagen, sr256, t5_xxl

GIB = 2**30
ROW = {
  "command": "python -m imagen_jax.compile --config=a.py --topology=v4-16",
  "program": "train",
  "topology": "v4-16",
  "chips": 8,
  "batch": 64,
  "flops": 3 * 10**15,
  "ideal_seconds": 0.25,
  "hbm_limit_bytes": 32 * GIB,
  "peak_bytes": 8 * GIB,
  "replicated_bytes": 3 * 2**20,
  "fits": True,
  "collectives": {
    "all-gather": {"count": 4, "bytes": 2 * GIB, "at_least": False},
    "all-reduce": {"count": 1, "bytes": GIB, "at_least": False},
    "reduce-scatter": {"count": 2, "bytes": GIB, "at_least": False},
  },
  "compile_seconds": 61.2,
}


def test_a_row_is_a_line_of_the_table():
  found = ROW | {
    "seconds": {"compute": 0.25, "hbm": 0.5, "ici": 0.125, "dcn": 0.0},
    "bound": "hbm",
    "predicted_seconds": 0.625,
    "mfu": 0.4,
  }
  *_, old, line = report.table([ROW, found]).splitlines()
  cells = [cell for cell in line.split("|")[1:-1]]
  assert cells == [
    f"`{ROW['command']}`<br>train",
    "8 (v4-16)",
    "64",
    "8.0 of 32.00",
    "3",
    "0.25",
    "0.5",
    "0.125",
    "0",
    "hbm",
    "0.625",
    "40%",
    "2.0",
    "2.0",
    "3",
    "61",
  ]
  # A row of an older version has no roofline.
  cells[6:12] = ["?"] * 5 + [""]
  assert old.split("|")[1:-1] == cells
  lines = report.table([ROW, ROW]).splitlines()
  assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1


def test_too_large_is_a_row_as_well():
  row = {k: v for k, v in ROW.items() if k != "collectives"}
  row |= {"fits": False, "peak_bytes": 40 * GIB}
  assert "40.0 of 32.00: does not fit" in report.table([row])
  assert "DOES NOT FIT, 40.00 GiB of 32.00 GiB" in report.line(row)


@pytest.mark.parametrize(
  ("message", "count"),
  [
    (
      "the total memory required for HLO temporaries (42.50G) exceeds "
      "available HBM (30.75G). HLO module: jit_step.",
      42.5 * GIB,
    ),
    ("Used 33.25G of 15.75G hbm. Exceeded hbm capacity", 33.25 * GIB),
    ("Used 512.0M of 15.75G hbm.", GIB / 2),
  ],
)
def test_what_was_needed_is_read_off_the_message(message, count):
  assert report.needed(RuntimeError(message)) == count


def test_another_failure_stays_one():
  with pytest.raises(RuntimeError, match="^INTERNAL: something else$"):
    report.needed(RuntimeError("INTERNAL: something else"))


def test_a_row_takes_the_place_of_its_command(tmp_path):
  path = tmp_path / "rows.json"
  other = ROW | {"command": "other"}
  report.keep(path, [ROW, other])
  report.keep(path, [ROW | {"batch": 128}])
  rows = json.loads(path.read_text())
  assert [(row["command"], row["batch"]) for row in rows] == [
    ("other", 64),
    (ROW["command"], 128),
  ]
  text = path.with_suffix(".md").read_text()
  assert text.endswith(report.table(rows))
  assert {p.name for p in tmp_path.iterdir()} == {"rows.json", "rows.md"}


def test_what_the_search_had_set_is_told():
  row = ROW | {"accumulate": 2, "remat": ["products", "none"]}
  said = "(accumulate 2, remat products, none)|"
  assert said in report.table([row]) and said not in report.table([ROW])


def test_what_the_devices_send_may_be_unknown():
  row = ROW | {"collectives": None}
  assert "|?|?|" in report.table([row])
  assert "sent: unknown" in report.line(row)


@pytest.mark.parametrize("module", [base_64, sr256])
def test_the_search_goes_from_little_recomputation_to_much(module):
  net = module.get_config().stage.net
  choices = list(search.remat_choices(net))
  assert choices[0] == ("none",) * 4 and choices[-1] == ("full",) * 4
  assert len(set(choices)) == len(choices) == 9
  cost = {"none": 0, "products": 1, "full": 2}
  costs = [[cost[policy] for policy in choice] for choice in choices]
  assert [sum(c) for c in costs] == list(range(9))
  assert all(c == sorted(c, reverse=True) for c in costs)  # large levels first


@pytest.mark.parametrize("module", [base_64, sr256])
def test_the_search_changes_the_config(module):
  config = module.get_config()
  for remat in search.remat_choices(config.stage.net):
    tried = search.set_candidate(config, 2, remat)
    net = config.stage.net
    found = [b["remat"] for b in net.blocks] if "blocks" in net else net.remat
    assert tried == {"accumulate": 2, "remat": [*found]}
    assert (config.train.accumulate, tuple(found)) == (2, remat)


def test_the_file_and_the_price_are_not_part_of_a_rows_command():
  given = [
    "--config=a.py",
    "--json",
    "b",
    "--price=2",
    "--json=b",
    "--price",
    "1",
  ]
  assert compile.the_command([*given, "--topology=v4-8"]) == (
    "python -m imagen_jax.compile --config=a.py --topology=v4-8"
  )


@pytest.mark.parametrize(
  ("config", "mode"),
  [
    (base_64.get_config(), "train"),
    (imagen.get_config(), "sample"),
    (t5_xxl.get_config(), "embed"),
    (ConfigDict(), "embed"),
  ],
)
def test_a_config_says_what_it_is_of(config, mode):
  assert programs.mode_of(config) == mode


@pytest.mark.parametrize(
  "text", ["{", "3", '["a"]', '[{"command": "a"}]', "[" * 100_000, '"a"']
)
def test_rows_that_are_none_are_refused_before_the_work(tmp_path, text):
  path = tmp_path / "rows.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=f"^json {path} "):
    report.rows_of(path)
  assert report.rows_of(tmp_path / "none.json") == []
  report.keep(tmp_path / "new.json", [ROW])
  assert report.rows_of(tmp_path / "new.json") == [ROW]


def test_the_committed_table_is_that_of_the_committed_rows():
  path = pathlib.Path(__file__).parents[2] / "launch" / "compiled.json"
  rows = json.loads(path.read_text())
  text = path.with_suffix(".md").read_text()
  assert text == f"{report.ABOUT}\n{report.table(rows)}"
  for row in rows:
    assert "--config=configs/" in row["command"]
    assert row["fits"] == (row["peak_bytes"] <= row["hbm_limit_bytes"])


def test_a_mistake_is_one_sentence(run_each):
  said = {
    "--topology is needed, such as v4-512 or v5e-8": [],
    "'v3-8' is no TPU slice, expected one of v4-N": ["--topology=v3-8"],
    "'v4-9' is no TPU slice, expected v4-N with N one": ["--topology=v4-9"],
    "--search is for training steps, this is --mode=embed": [
      "--topology=v4-16",
      "--search",
      "--mode=embed",
    ],
  }
  config = "--config=configs/t5_xxl.py:small"
  done = run_each("compile", [[config, *args] for args in said.values()])
  assert done.stdout.splitlines() == ["exit 1"] * len(said)
  lines = done.stderr.splitlines()
  for line, sentence in zip(lines, said, strict=True):
    assert line.startswith(f"error: {sentence}")


@pytest.mark.slow
def test_a_small_step_compiles_for_a_tpu(run, tmp_path):
  """For a v4, with its weights in parts; silent on standard error."""
  pytest.importorskip("libtpu")
  path = tmp_path / "rows.json"
  done = run(
    "compile",
    "--config=configs/shapes16.py",
    "--topology=v4-8",
    "--config.mesh.data=1",
    "--config.mesh.fsdp=-1",
    "--config.stage.net.channel_mult=(1,)",
    "--config.stage.net.num_res_blocks=1",
    "--config.stage.net.attn_resolutions=(16,)",
    "--json",
    str(path),
    "--config.stage.net.text_cross_attn_res=(16,)",
  )
  assert (done.returncode, done.stderr) == (0, "")
  (row,) = json.loads(path.read_text())
  command = row["command"]
  assert "rows.json" not in command and command.endswith("res=(16,)'")
  assert row["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
  assert row["fits"] and 0 < row["peak_bytes"] < 2 * GIB
  assert row["replicated_bytes"] == 0
  assert row["collectives"]["all-gather"]["bytes"] > 0
  assert row["flops"] > 1e9 and row["hbm_bytes"] > 10**6
  assert row["bound"] in row["seconds"] and 0 < row["mfu"] < 0.5
  assert (row["steps"], row["accumulate"]) == (12_000, 1)
  assert re.search(r"train on v4-8, batch 32: fits, \d", done.stdout)


@pytest.mark.slow
def test_what_does_not_fit_is_a_row_and_a_code(run, tmp_path):
  """T5-XXL whole on one v5e: 9 GB of weights, and as much again in a loop."""
  pytest.importorskip("libtpu")
  path = tmp_path / "rows.json"
  done = run(
    "compile",
    "--config=configs/t5_xxl.py",
    "--topology=v5e-1",
    "--config.text.batch_size=2048",
    f"--json={path}",
  )
  assert (done.returncode, done.stderr) == (3, "")
  (row,) = json.loads(path.read_text())
  assert not row["fits"] and row["peak_bytes"] > row["hbm_limit_bytes"]
  assert "DOES NOT FIT" in done.stdout
