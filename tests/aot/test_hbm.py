"""Traffic with memory: HLO as TPUs write it, and small programs of a CPU."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from imagen_jax.aot.hbm import hbm_bytes

KIB = 1024  # bytes of f32[256]


def module(entry, *computations):
  """HLO text of computations, each a head and its lines."""
  computations = (*computations, ("ENTRY %main (p: f32[256]) -> f32[]", entry))
  texts = [
    head + " {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"
    for head, lines in computations
  ]
  return "HloModule jit_f, is_scheduled=true\n\n" + "\n".join(texts)


P = "%p = f32[256]{0:T(256)} parameter(0)"
Q = "%q = f32[1024]{0} parameter(1)"
INDEX = "%i = s32[]{:T(128)S(6)} parameter(2)"


@pytest.mark.parametrize(
  ("line", "kib"),
  [
    ("f32[256]{0} add(%p, %p)", 3),
    ("f32[256]{0:T(256)S(1)} add(%p, %p)", 2),  # the result stays on the chip
    ("bf16[256]{0} convert(%p)", 1.5),
    ("(f32[256]{0}, u32[]) tuple(%p, %i)", 0),
    ("f32[16,16]{1,0} bitcast(%p)", 0),
    ("f32[256]{0} dynamic-slice(%q, %i)", 2),  # not all of q
    ("f32[1024]{0} dynamic-update-slice(%q, %p, %i)", 2),
    ("f32[1024]{0} all-gather(%p), channel_id=1", 5),
    ("(f32[256]{0}, f32[1024]{0}) all-gather-start(%p), channel_id=1", 5),
    ("f32[1024]{0} all-gather-done(%p)", 0),
    ("(f32[256]{0:S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%p)", 1),
    ('f32[256]{0} custom-call(), custom_call_target="AllocateBuffer"', 0),
    ("f32[]{:S(6)} reduce(%q, %i), to_apply=%sum", 4),
  ],
)
def test_an_instruction_moves_its_operands_and_results(line, kib):
  more = ("%sum (a: f32[], b: f32[]) -> f32[]", ["ROOT %s = f32[] add(%a, %b)"])
  assert hbm_bytes(module([P, Q, INDEX, f"%x = {line}"], more)) == kib * KIB


def fusion(inner, result="f32[256]{0}"):
  """A fusion of the parameters a = p, b = q and c = i."""
  lines = [
    "%a = f32[256]{0} parameter(0)",
    "%b = f32[1024]{0} parameter(1)",
    "%c = s32[] parameter(2)",
    *inner,
  ]
  call = f"%x = {result} fusion(%p, %q, %i), kind=kLoop, calls=%fused"
  return module(
    [P, Q, INDEX, call], (f"%fused (a: f32[256]) -> {result}", lines)
  )


@pytest.mark.parametrize(
  ("inner", "result", "kib"),
  [
    (["%n = f32[256] negate(%a)", "ROOT %m = f32[256] sqrt(%n)"], None, 2),
    (
      [
        "%s = f32[256] dynamic-slice(%b, %c), dynamic_slice_sizes={256}",
        "ROOT %m = f32[256] add(%a, %s)",
      ],
      None,
      3,
    ),
    (  # a part is written in place
      [
        "%v = f32[1024] bitcast(%b)",
        "ROOT %u = f32[1024] dynamic-update-slice(%v, %a, %c)",
      ],
      "f32[1024]{0}",
      2,
    ),
    (  # one of two results is written in place, the other stays on the chip
      [
        "%n = f32[256] negate(%a)",
        "%u = f32[1024] dynamic-update-slice(%b, %n, %c)",
        "ROOT %t = (f32[1024], f32[256]) tuple(%u, %n)",
      ],
      "(f32[1024]{0}, f32[256]{0:S(1)})",
      2,
    ),
    (  # both sliced and used whole
      [
        "%s = f32[256] dynamic-slice(%b, %c), dynamic_slice_sizes={256}",
        "%r = f32[] reduce(%b, %c), to_apply=%sum",
        "ROOT %m = f32[256] add(%s, %r)",
      ],
      None,
      5,
    ),
  ],
)
def test_a_fusion_reads_what_it_needs(inner, result, kib):
  hlo = fusion(inner, result or "f32[256]{0}")
  assert hbm_bytes(hlo) == kib * KIB


def loop(times):
  config = f', backend_config={{"known_trip_count":{{"n":"{times}"}}}}'
  state = "(s32[]{:S(6)}, f32[256]{0})"
  return module(
    [P, f"%w = {state} while(%p), condition=%c, body=%b{config}"],
    (
      f"%b (t: {state}) -> {state}",
      [
        f"%t = {state} parameter(0)",
        "%x = f32[256]{0} get-tuple-element(%t), index=1",
        "%y = f32[256]{0} negate(%x)",
      ],
    ),
    (f"%c (t: {state}) -> pred[]", []),
  )


def test_a_loop_counts_as_often_as_it_runs():
  assert hbm_bytes(loop(7)) == 7 * 2 * KIB


def test_of_a_conditional_the_larger_branch_counts():
  branch = lambda name, n: (
    f"%{name} (x: f32[256]) -> f32[256]",
    ["%x = f32[256]{0} parameter(0)"]
    + [f"%y{i} = f32[256]{{0}} negate(%x)" for i in range(n)],
  )
  line = "%r = f32[256]{0} conditional(%p, %p, %p), "
  line += "branch_computations={%a, %b}"
  hlo = module([P, line], branch("a", 1), branch("b", 3))
  assert hbm_bytes(hlo) == 3 * 2 * KIB


def compiled(fn, *shapes):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(fn).lower(*arguments).compile()


def test_without_loops_it_is_xlas_own_count():
  fn = lambda x, y: jnp.tanh(x) @ (y * 2.0)
  program = compiled(fn, (128, 256), (256, 64))
  own = program.cost_analysis()["bytes accessed"]
  assert hbm_bytes(program.as_text()) == pytest.approx(own, rel=0.01)


def test_a_scan_reads_each_layer_once():
  def run(length):
    def layer(x, w):
      return jnp.tanh(x @ w), None

    shapes = (8, 512), (length, 512, 512)
    program = compiled(lambda x, ws: lax.scan(layer, x, ws)[0], *shapes)
    return hbm_bytes(program.as_text())

  weights = 512 * 512 * 4
  more = (run(9) - run(5)) / 4
  # A layer is read, perhaps after it is copied out of its stack.
  assert weights <= more < 3.5 * weights
