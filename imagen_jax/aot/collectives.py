"""The traffic of a compiled program between devices, read from its HLO text."""

import dataclasses

from imagen_jax.aot.hlo import (
  Computation,
  Instruction,
  Program,
  parse,
  size_of,
  trips,
)

# Collectives whose bytes are those of the result, unlike a reduce-scatter's.
RESULTS = frozenset(
  (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
  )
)


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Counts collectives of a kind.

  Attributes:
    count: how often they run.
    bytes: their bytes on each device.
    at_least: True if some are in loops of unknown length, which count once.
  """

  count: int = 0
  bytes: int = 0
  at_least: bool = False


def collectives(hlo: str, loop: int | None = None) -> dict[str, Traffic]:
  """Counts the traffic of one run of a compiled program, by kind.

  Kinds are HLO's, and "cross-slice" for traffic between TPU slices through
  their hosts. A collective counts as often as the loops around it run; its
  -start and -done count once. Of a conditional, the branch with the most bytes
  counts.

  Bytes are the size of the result on one device, but of the operand for a
  reduce-scatter. Summing N bytes therefore counts N by all-reduce and by
  reduce-scatter, and N more if the reduce-scatter's result is all-gathered.

  Args:
    hlo: the text from compiled.as_text().
    loop: how often loops of unknown length run, if the caller knows.

  Returns:
    The traffic of each kind that occurs.
  """
  program, entry = parse(hlo)
  return _traffic(program, entry, loop)


def _traffic(
  program: Program, computation: Computation, loop: int | None
) -> dict[str, Traffic]:
  """Counts the traffic of one run of a computation and those that it calls."""
  total: dict[str, Traffic] = {}
  for line in computation.lines.values():
    _add(total, _own(computation, line))
    if line.opcode.endswith(("-update", "-done")):
      continue  # these name the computation of their -start
    called = r"(?:to_apply|calls|condition|body|\w+_computations?)"
    inner = [_traffic(program, program[c], loop) for c in line.called(called)]
    if line.opcode == "conditional":
      inner = [max(inner, key=lambda t: sum(part.bytes for part in t.values()))]
    times = 1
    if line.opcode == "while":
      times = trips(program, computation, line)
      times = loop if times is None else times
    for traffic in inner:
      _add(total, traffic, times)
  return total


def _add(
  total: dict[str, Traffic], more: dict[str, Traffic], times: int | None = 1
) -> None:
  """Adds traffic to a total, a number of times; None is an unknown number."""
  for kind, part in more.items():
    old = total.get(kind, Traffic())
    total[kind] = Traffic(
      old.count + part.count * (1 if times is None else times),
      old.bytes + part.bytes * (1 if times is None else times),
      old.at_least or part.at_least or times is None,
    )


def _own(computation: Computation, line: Instruction) -> dict[str, Traffic]:
  """Returns an instruction's own traffic, without that of its computations."""
  if line.opcode == "send" and "xla_megascale" in line.attributes:
    return {"cross-slice": Traffic(1, _operands(computation, line)[0])}
  if _continues(computation, line):
    return {}
  if line.opcode in ("reduce-scatter", "reduce-scatter-start"):
    return {"reduce-scatter": Traffic(1, sum(_operands(computation, line)))}
  kind = line.opcode.removesuffix("-done")
  if kind not in RESULTS:
    return {}
  # A TPU's reduce-scatter may be an all-reduce fused with slices of it.
  if computation.name.startswith("all-reduce-scatter"):
    kind = "reduce-scatter"
  return {kind: Traffic(1, size_of(line.shape))}


def _operands(computation: Computation, line: Instruction) -> list[int]:
  """Returns the bytes of each operand."""
  return [size_of(computation.lines[name].shape) for name in line.operands()]


def _continues(computation: Computation, line: Instruction) -> bool:
  """Returns True if a collective continues one that another fusion has started.

  On TPUs a collective is copied to the fusions that start it, compute meanwhile
  and end it.
  """
  return "async_collective_fusion_config" in line.attributes and not any(
    "AsyncCollectiveStart" in other.attributes
    for other in computation.lines.values()
  )
