"""Traffic read in HLO: snippets as TPUs and CPUs write it, and programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.aot.collectives import Traffic, collectives

ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()


def module(entry, *computations):
  """HLO text of computations, each a head and its lines."""
  computations = (*computations, ("ENTRY %main (p: f32[8]) -> f32[8]", entry))
  texts = [
    head + " {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"
    for head, lines in computations
  ]
  return "HloModule jit_f, is_scheduled=true\n\n" + "\n".join(texts)


@pytest.mark.parametrize(
  ("line", "kind", "size"),
  [
    ("bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%p)", "all-gather", 64),
    ("(f32[8]{0}, pred[3]{0}) all-reduce(%p, %q)", "all-reduce", 35),
    ("f32[1]{0} reduce-scatter(%p)", "reduce-scatter", 32),
    ("f32[8]{0:T(128)S(1)} collective-permute(%p)", "collective-permute", 32),
    ("(s4[3]{0}, /*index=1*/u8[]) all-to-all(%p, %q)", "all-to-all", 3),
  ],
)
def test_bytes_are_those_of_the_result_or_of_what_is_scattered(
  line, kind, size
):
  hlo = module(
    ["%p = f32[8]{0} parameter(0)", f"ROOT %x = {line}, dimensions={{0}}"]
  )
  assert collectives(hlo) == {kind: Traffic(1, size)}


@pytest.mark.parametrize(
  ("kind", "started", "size"),
  [
    ("all-gather", "(f32[2]{0}, f32[8]{0}, u32[]{:S(2)})", 32),
    ("all-reduce", "f32[8]{0}", 32),
    ("collective-permute", "(f32[8]{0}, f32[8]{0}, u32[], u32[])", 32),
    ("reduce-scatter", "((f32[2]{0}), f32[8]{0}, u32[])", 8),
  ],
)
def test_a_pair_of_start_and_done_counts_once(kind, started, size):
  hlo = module(
    [
      "%p = f32[2]{0} parameter(0)",
      f"%start = {started} {kind}-start(%p), channel_id=1",
      f"ROOT %done = f32[8]{{0}} {kind}-done(%start)",
    ]
  )
  assert collectives(hlo) == {kind: Traffic(1, size)}


def test_a_wrapped_pair_counts_once():
  hlo = module(
    [
      "%p = f32[8]{0} parameter(0)",
      "%s = ((f32[8]), f32[8], u32[]) async-start(%p), calls=%wrapped",
      "%u = ((f32[8]), f32[8], u32[]) async-update(%s), calls=%wrapped",
      "ROOT %d = f32[8]{0} async-done(%u), calls=%wrapped",
    ],
    (
      "%wrapped (q: f32[8]) -> f32[8]",
      ["%q = f32[8]{0} parameter(0)", "ROOT %a = f32[8] all-to-all(%q)"],
    ),
  )
  assert collectives(hlo) == {"all-to-all": Traffic(1, 32)}


def loop(*, start="constant(0)", stop="4", step="1", config="", test="LT"):
  """A TPU's loop whose body reduces 32 bytes."""
  state = "(s32[]{:T(128)}, f32[8]{0:T(256)})"
  entry = [
    "%p = f32[8]{0} parameter(0)",
    f"%first = s32[]{{:T(128)}} {start}",
    "%copy.1 = s32[]{:T(128)} copy(%first)",
    "%copy.2 = s32[]{:T(128)} copy(%copy.1)",
    f"%init = {state} tuple(%copy.2, %p)",
    f"%while = {state} while(%init), condition=%cond, body=%body{config}",
    "ROOT %out = f32[8]{0} get-tuple-element(%while), index=1",
  ]
  body = [
    f"%b = {state} parameter(0)",
    "%i = s32[]{:T(128)} get-tuple-element(%b), index=0",
    "%i.copy = s32[]{:T(128)S(6)} copy(%i)",
    "%x = f32[8]{0} get-tuple-element(%b), index=1",
    f"%step = s32[]{{:T(128)}} constant({step})",
    '%next = s32[]{:T(128)} add(%i.copy, %step), metadata={op_name="add"}',
    "%sum = f32[8]{0} all-reduce(%x), channel_id=1, to_apply=%add",
    f"ROOT %t = {state} tuple(%next, %sum)",
  ]
  condition = [
    f"%c = {state} parameter(0)",
    "%j = s32[]{:T(128)} get-tuple-element(%c), index=0",
    f"%stop = s32[]{{:T(128)}} constant({stop})",
    f"ROOT %lt = pred[]{{:T(512)}} compare(%j, %stop), direction={test}",
  ]
  return module(
    entry,
    ("%add (l: f32[], r: f32[]) -> f32[]", ["ROOT %s = f32[] add(%l, %r)"]),
    (f"%body (b: {state}) -> {state}", body),
    (f"%cond (c: {state}) -> pred[]", condition),
  )


KNOWN = ', backend_config={"known_trip_count":{"n":"7"},"x":{"n":"9"}}'


@pytest.mark.parametrize(
  ("changes", "times"),
  [
    ({}, 4),
    ({"start": "constant(1)"}, 3),  # as XLA peels the first iteration off
    ({"step": "2"}, 2),  # or makes one of two
    ({"stop": "5", "step": "2"}, 3),
    ({"start": "constant(9)"}, 0),
    ({"config": KNOWN}, 7),
  ],
)
def test_a_collective_counts_as_often_as_its_loop_runs(changes, times):
  traffic = collectives(loop(**changes))
  assert traffic == {"all-reduce": Traffic(times, 32 * times)}


@pytest.mark.parametrize(
  "changes", [{"start": "custom-call()"}, {"test": "NE"}]
)
def test_a_loop_of_unknown_length_is_told(changes):
  traffic = collectives(loop(**changes))
  assert traffic == {"all-reduce": Traffic(1, 32, at_least=True)}


@pytest.mark.parametrize(
  ("kind", "size"), [("all-gather", 32), ("reduce-scatter", 8)]
)
def test_a_collective_that_a_tpu_overlaps_with_fusions_counts_once(kind, size):
  config = 'backend_config={"async_collective_fusion_config":{}}'
  lines = [
    "%q = f32[2]{0} parameter(0)",
    f"%g = f32[8]{{0}} {kind}(%q), channel_id=1, {config}",
  ]
  custom = "ROOT %c = f32[8]{0} custom-call(%g), custom_call_target="
  head = "(q: f32[2]) -> f32[8]"
  hlo = module(
    [
      "%p = f32[2]{0} parameter(0)",
      "%s = f32[8]{0} fusion(%p), kind=kCustom, calls=%fused.1",
      "%f = f32[8]{0} fusion(%s), kind=kOutput, calls=%fused.2",
      "ROOT %d = f32[8]{0} fusion(%f), kind=kCustom, calls=%fused.3",
    ],
    (f"%fused.1 {head}", [*lines, f'{custom}"AsyncCollectiveStart"']),
    (f"%fused.2 {head}", [*lines, "ROOT %n = f32[8]{0} negate(%g)"]),
    (f"%fused.3 {head}", [*lines, f'{custom}"AsyncCollectiveDone"']),
  )
  assert collectives(hlo) == {kind: Traffic(1, size)}


def test_an_all_reduce_that_a_tpu_fuses_with_slices_is_a_reduce_scatter():
  hlo = module(
    [
      "%p = f32[8]{0} parameter(0)",
      "ROOT %f = f32[2] fusion(%p), calls=%all-reduce-scatter.1.clone",
    ],
    (
      "%all-reduce-scatter.1.clone (q: f32[8]) -> f32[2]",
      [
        "%q = f32[8]{0} parameter(0)",
        "%r = f32[8]{0} all-reduce(%q), to_apply=%add",
        "ROOT %s = f32[2]{0} dynamic-slice(%r, %i)",
      ],
    ),
    ("%add (l: f32[], r: f32[]) -> f32[]", ["ROOT %s = f32[] add(%l, %r)"]),
  )
  assert collectives(hlo) == {"reduce-scatter": Traffic(1, 32)}


def test_what_slices_send_each_other_is_a_kind_of_its_own():
  handler = "frontend_attributes={_xla_host_transfer_handler_name="
  hlo = module(
    [
      "%p = f32[8]{0} parameter(0)",
      "%t = token[] after-all()",
      f'%s = (f32[8], u32[], token[]) send(%p, %t), {handler}"xla_megascale"}}',
      "%d = token[] send-done(%s)",
      "%h = (f32[8], u32[], token[]) send(%p, %t), is_host_transfer=true",
      f'ROOT %r = (f32[16], u32[]) recv(%t), {handler}"xla_megascale"}}',
    ]
  )
  assert collectives(hlo) == {"cross-slice": Traffic(1, 32)}


def mesh():
  return Mesh(np.asarray(jax.devices()), ("data",))


def compiled(fn, *arguments, out=WHOLE):
  """HLO of a function of arguments that are sharded over 8 devices by rows."""
  spread = NamedSharding(mesh(), ROWS)
  arguments = [
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=spread)
    for shape in arguments
  ]
  jitted = jax.jit(fn, out_shardings=NamedSharding(mesh(), out))
  return jitted.lower(*arguments).compile().as_text()


def test_a_sum_over_devices():
  traffic = collectives(compiled(lambda x: x.sum(0), (16, 12)))
  assert traffic == {"all-reduce": Traffic(1, 12 * 4)}


def test_a_sum_over_devices_in_nested_scans():
  def sums(x):
    def once(scale, _):
      return scale + (x * scale).sum(0), None

    def five(scale, _):
      return lax.scan(once, scale * 2, None, 5)

    return lax.scan(five, jnp.ones(12), None, 3)[0]

  traffic = collectives(compiled(sums, (16, 12)))
  assert traffic == {"all-reduce": Traffic(15, 15 * 12 * 4)}


def test_sums_over_devices_until_they_are_large_three_times_and_two_more():
  def sums(x):
    more = lambda y: (x * y).sum(0)
    until = lambda y, _: (lax.while_loop(lambda y: y[0] < 9, more, y), None)
    return more(lax.scan(until, x.sum(0), None, 3)[0])

  traffic = collectives(compiled(sums, (16, 12)))
  assert traffic == {"all-reduce": Traffic(5, 5 * 12 * 4, at_least=True)}


def test_the_branch_that_sends_most_counts():
  def sums(x):
    small, large = lambda x: jnp.full(12, x.sum()), lambda x: x.sum(0)
    return lax.switch(jnp.int32(x[0, 0]), [small, large, small], x)

  index = 4  # bytes, which all devices need
  assert collectives(compiled(sums, (16, 12))) == {
    "all-reduce": Traffic(2, index + 12 * 4)
  }


def test_every_kind_in_one_program():
  def body(x):
    return (
      lax.all_to_all(x, "data", 1, 0, tiled=True),
      lax.ppermute(x * 2, "data", [(i, (i + 1) % 8) for i in range(8)]),
      lax.psum_scatter(x @ x.T, "data", tiled=True),
      lax.all_gather(x + 1, "data", tiled=True),
    )

  fn = jax.shard_map(
    body, mesh=mesh(), in_specs=ROWS, out_specs=ROWS, check_vma=False
  )
  block = 16 * 24 * 4
  assert collectives(compiled(fn, (8 * 16, 24), out=ROWS)) == {
    "all-to-all": Traffic(1, block),
    "collective-permute": Traffic(1, block),
    "reduce-scatter": Traffic(1, 16 * 16 * 4),
    "all-gather": Traffic(1, 8 * block),
  }
