"""What chips need to be fed, beside what a host reads."""

import os
import pathlib
import re
import runpy

import pytest

from imagen_jax import build, train
from imagen_jax.aot.topologies import hosts_and_peak
from imagen_jax.build.configs import read_config
from imagen_jax.training import input_speed
from imagen_jax.training.input_speed import Chips, Measured

DATA = pathlib.Path(__file__).parents[1] / "data"
written = runpy.run_path(str(DATA / "datasets.py"))


@pytest.fixture
def config(tmp_path, monkeypatch):
  """The demo's base stage on four stored images, one of them too small."""
  monkeypatch.setattr(input_speed, "SECONDS", 0.01)
  sides = (16, 16, 20, 9)
  written["write_dataset"](
    tmp_path / "data",
    [{"image": written["png"](side=s), "caption": b"a star"} for s in sides],
  )
  config = read_config("configs/shapes16.py")
  config.data = dict(
    name="my_set", data_dir=str(tmp_path / "data"), batch_size=8,
    least_side=16, max_small_share=1.0,
  )  # fmt: skip
  config.stage.net.update(
    embed_dim=8, channel_mult=(1,), num_res_blocks=1, attn_resolutions=(),
    text_cross_attn_res=(), text_width=8, norm_groups=4,
  )  # fmt: skip
  config.text.weights = "nowhere"  # which need not be there
  return config


def run_of(**data):
  config = read_config("configs/shapes16.py")
  config.data.update(data)
  return build.run(config)


@pytest.mark.parametrize(
  ("name", "slices", "hosts", "tflops"),
  [
    ("v5e-256", 1, 64, 256 * 197),
    ("v5e-256", 2, 128, 512 * 197),
    ("v5e-8", 1, 1, 8 * 197),
    ("v5e-1", 1, 1, 197),
    ("v5litepod-16", 1, 4, 16 * 197),
    ("v4-512", 1, 64, 256 * 275),
    ("v4-8", 1, 1, 4 * 275),
    ("v6e-256", 1, 64, 256 * 918),
    ("tpu7x-64", 1, 8, 64 * 1153.5),  # 32 chips of two devices
  ],
)
def test_hosts_and_peak_of_a_slice(name, slices, hosts, tflops):
  found = hosts_and_peak(name, slices)
  assert found == (hosts, pytest.approx(tflops * 1e12))


@pytest.mark.parametrize(
  ("pflop", "name", "rate"),
  [(12.0, "v5e-256", 54), (12.0, "v6e-256", 251), (6.08, "v4-256", 148)],
)
def test_the_paper_s_stages_need(pflop, name, rate):
  chips = Chips(name, *hosts_and_peak(name))
  need = input_speed.needed_rate(pflop * 1e15, 2048, chips)
  assert need == pytest.approx(rate, rel=0.01)


def test_the_operations_grow_with_the_batch(config):
  """They are those of the whole batch, over all hosts."""
  one = input_speed.step_flops(build.run(config))
  config.data.batch_size = 16
  assert input_speed.step_flops(build.run(config)) == pytest.approx(2 * one)


def speed(images=100, seconds=10.0, cpu=1.0, reading=1.0):
  return Measured(images, seconds, cpu, images, reading, 0)


@pytest.mark.parametrize(
  ("found", "settings", "said"),
  [
    (speed(cpu=18), dict(threads=2), "the cores are the limit"),
    (speed(cpu=18), dict(threads=4), "neither is the limit"),
    (
      speed(reading=90),
      dict(reads=10),
      "reads are the limit: raise data.reads",
    ),
    (speed(reading=90), dict(reads=20), "neither is the limit"),
    (speed(cpu=18, reading=90), dict(threads=2), "the cores are the limit"),
  ],
)
def test_the_limit_is_named(found, settings, said, monkeypatch):
  monkeypatch.setattr(input_speed, "usable_cores", lambda: 4)
  assert input_speed.limit(found, run_of(**settings)).startswith(said)


def test_the_verdict():
  assert input_speed.verdict(speed(), 4.0, 2) == (
    "enough: this host reads 2.5 times what is needed"
  )
  assert input_speed.verdict(speed(cpu=20), 40.0, 2) == (
    "not enough: this host reads 25.0% of what is needed, and the chips would"
    " wait the rest of the time; 8.0 cores like these 2 are needed, if reads"
    " keep up"
  )


def test_a_host_is_measured_and_nothing_is_written(config, tmp_path):
  before, lines = sorted(tmp_path.rglob("*")), []
  chips = Chips("2 hosts of 1 TFLOP/s", 2, 1e12, host=1)
  input_speed.time_input(build.run(config), chips, lines.append)
  patterns = [
    r"needed: [\d,.]+ images/s a host: a batch of 8 over 2 host\(s\) every"
    r" [\d.e-]+ s, which [\d.e-]+ PFLOP take at 40% of the peak of 2 hosts.*",
    r"measuring for 0.01 s ...",
    r"input: [\d,.]+ images/s, [\d.]+ MB/s of image files, [\d,.]+ images/s per"
    r" core, in \d+\.\d s",
    r"reads: \d+\.\d ms a record, \d+\.\d of at most 32 at once",
    r"cores: \d+\.\d ms of a core an image, \d+\.\d of \d+ in use; .* limit.*",
    r"\d+ of \d+ records read have images smaller than least_side, a share .*",
    r"(enough|not enough): this host reads .*",
  ]
  assert len(lines) == len(patterns), lines
  for line, pattern in zip(lines, patterns):
    assert re.fullmatch(pattern, line), line
  assert sorted(tmp_path.rglob("*")) == before


def test_each_host_reads_its_own_rows(config, monkeypatch):
  seen, open_batches = [], input_speed.open_batches
  monkeypatch.setattr(
    input_speed, "open_batches",
    lambda *args, rows, **options: (
      seen.append([*rows]) or open_batches(*args, rows=rows, **options)
    ),
  )  # fmt: skip
  for host in range(2):
    chips = Chips("cpu", 2, None, host)
    input_speed.time_input(build.run(config), chips, lambda line: None)
  assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_devices_at_hand_of_an_unknown_kind(config):
  chips, lines = input_speed.own_chips(), []
  assert chips.peak_flops is None and chips.host == 0
  input_speed.time_input(build.run(config), chips, lines.append)
  assert lines[0].startswith("needed: not known, like the peak speed of ")
  assert "smaller than least_side" in lines[-1]  # and no verdict


def test_fewer_examples_than_hosts(config):
  with pytest.raises(ValueError, match="batch_size is 8, expected at least 64"):
    input_speed.time_input(
      build.run(config), Chips("v5e-256", 64, 1e15), pytest.fail
    )


CONFIG = "--config=configs/shapes16.py"


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--time_input"], "--time_input needs --dry_run: it measures and does"),
    (["--topology=v5e-8"], "--topology needs --dry_run --time_input, whose"),
    (
      ["--dry_run", "--topology=v5e-8"],
      "--topology needs --dry_run --time_input",
    ),
    (
      ["--dry_run", "--time_input", "--num_slices=2"],
      "--num_slices needs --topology",
    ),
    (["--dry_run", "--time_input", "--topology=v9"], "'v9' is no TPU slice"),
    (
      ["--dry_run", "--time_input", "--topology=v5e-8", "--num_slices=0"],
      "num_slices is 0, expected at least 1",
    ),
  ],
)
def test_flags_that_do_not_fit(flags, message):
  with pytest.raises(ValueError, match=message):
    train.main([CONFIG, "--workdir=unused", *flags])
  assert not os.path.exists("unused")


def test_the_verb_needs_no_workdir(monkeypatch):
  seen = []
  monkeypatch.setattr(
    input_speed, "time_input", lambda run, chips, say: seen.append(chips)
  )
  train.main(
    [CONFIG, "--dry_run", "--time_input", "--topology=v5e-256",
     "--num_slices=2"]
  )  # fmt: skip
  assert seen == [Chips("2 x v5e-256", 128, 512 * 197e12)]
