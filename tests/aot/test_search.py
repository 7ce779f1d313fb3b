"""The search's estimates and order, on 8 fake devices and in tiny."""

import types

import jax
import pytest
from ml_collections import ConfigDict

from imagen_jax import build, compile
from imagen_jax.aot import search
from imagen_jax.parallel import mesh
from imagen_jax.parallel.flops import count_flops
from imagen_jax.parallel.peaks import Speed
from imagen_jax.training.setup import set_up

FAST = Speed(tflops=1e-6, hbm_gb=1e6, links_gb=1e9, network_gb=1.0)
SLOW = Speed(tflops=1e-6, hbm_gb=1e6, links_gb=1e-3, network_gb=1.0)
NONE, PRODUCTS, FULL = ("none",), ("products",), ("full",)
# The FLOPs and kept bytes of an example.
COSTS = {NONE: (1000, 9000), PRODUCTS: (1010, 4000), FULL: (1300, 1000)}


def config(batch_size=32, fsdp=4, **net):
  return ConfigDict(
    {
      "text": {
        "encoder": {
          "vocab_size": 64,
          "emb_dim": 16,
          "num_heads": 2,
          "num_encoder_layers": 1,
          "head_dim": 8,
          "mlp_dim": 16,
          "dtype": "bfloat16",
        },
        "vocabulary": "",
        "weights": "",
        "length": 8,
      },
      "stage": {
        "size": 8,
        "net": {
          "kind": "UNet",
          "image_size": 8,
          "embed_dim": 8,
          "channel_mult": (1,),
          "num_res_blocks": 1,
          "attn_resolutions": (),
          "text_cross_attn_res": (),
          "per_head_channels": 8,
          "feature_pooling_type": "mean",
          "text_width": 8,
          "norm_groups": 4,
          "remat": NONE,
          "dtype": "bfloat16",
          **net,
        },
      },
      "data": {"batch_size": batch_size},
      "optimizer": {"kind": "adafactor"},
      "train": {"steps": 10, "accumulate": 1},
      "sampling": {},
      "weights": "",
      "mesh": {"data": -1, "fsdp": fsdp},
    }
  )


def devices_of(config):
  return mesh.make_mesh(build.mesh(config))


def setup_of(config):
  return set_up(build.run(config), devices_of(config))


@pytest.fixture
def ranked(monkeypatch):
  """Ranks candidates of 4 examples a device, whose costs are COSTS."""
  costs = lambda run, params: COSTS[tuple(run.stage.net.remat)]
  monkeypatch.setattr(search, "example_cost", costs)
  it = config()
  return lambda *args: search.ranked(it, devices_of(it), *args)


def test_recomputing_comes_before_gathering_again(ranked):
  """Two parts gather all weights twice, and "products" adds few FLOPs."""
  order = [(it.accumulate, it.remat) for it in ranked(SLOW, 2**40)]
  assert order == [(n, it) for n in (1, 2, 4) for it in (NONE, PRODUCTS, FULL)]


def test_where_links_are_fast_flops_decide(ranked):
  order = [(it.accumulate, it.remat) for it in ranked(FAST, 2**40)]
  assert order == [(n, it) for it in (NONE, PRODUCTS, FULL) for n in (1, 2, 4)]


def test_what_cannot_fit_is_left_out(ranked):
  kept = {(it.accumulate, it.remat): it.bytes for it in ranked(SLOW, 2**40)}
  state = kept[1, FULL] - int(search.CERTAIN * 4 * 1000)
  assert kept == {
    (n, remat): state + int(search.CERTAIN * 4 * COSTS[remat][1] / n)
    for n in (1, 2, 4)
    for remat in COSTS
  }
  limit = kept[2, PRODUCTS]
  found = ranked(SLOW, limit)
  fitting = {each for each, size in kept.items() if size <= limit}
  assert {(it.accumulate, it.remat) for it in found} == fitting
  assert (found[0].accumulate, found[0].remat) == (1, FULL)
  with pytest.raises(
    ValueError, match=r"^--search finds no setting: each needs at "
  ):
    ranked(SLOW, 1000)


def test_an_examples_cost_is_that_of_the_step():
  setup = setup_of(config())
  none, full = (
    search.example_cost(build.run(config(remat=remat)), setup.state.params)
    for remat in (NONE, FULL)
  )
  assert full[0] > none[0] and 0 < full[1] < none[1]
  with jax.set_mesh(setup.devices):
    step = count_flops(setup.step, setup.state, setup.text, setup.batch)
  encoding = search._encoding_flops(setup)
  assert encoding > 0 and none[0] * 32 + encoding == step


def test_weights_are_gathered_twice_by_each_part():
  setup = setup_of(config())
  one, two = (search.weight_traffic(setup, n) for n in (1, 2))
  reduced = one["reduce-scatter"]["bytes"]
  assert two["reduce-scatter"]["bytes"] == 2 * reduced
  more = two["all-gather"]["bytes"] - one["all-gather"]["bytes"]
  assert more == 2 * reduced > 0  # the text encoder's are gathered once
  assert one["all-gather"]["bytes"] > more
  alone = setup_of(config(fsdp=1))
  assert search.weight_traffic(alone, 1).keys() == {"all-reduce"}


@pytest.mark.parametrize(
  ("fits", "seconds", "compiled", "best"),
  [
    ("yyyyy", (3, 1, 2, 0, 0), 3, 1),  # of the best three, the fastest
    ("nnyyy", (1, 1, 9, 0, 0), 3, 2),
    ("nnnny", (1, 1, 1, 1, 5), 5, 4),  # until one fits
    ("nnnnn", (1, 1, 1, 1, 1), 5, 4),
  ],
)
def test_the_best_three_are_compiled_and_more_until_one_fits(
  monkeypatch, fits, seconds, compiled, best
):
  order = [search.Candidate(n, NONE, 0.0, 0) for n in range(5)]
  monkeypatch.setattr(search, "ranked", lambda *_: order)
  rows = []

  def compile_one(tried):
    at = len(rows)
    row = {"fits": fits[at] == "y", "predicted_seconds": seconds[at]}
    rows.append(row | tried)
    return rows[-1:]

  tpus = types.SimpleNamespace(speed=FAST, hbm_bytes=0)
  it = config()
  (row,) = compile.searched(it, None, tpus, compile_one)
  assert (len(rows), row["accumulate"]) == (compiled, best)
