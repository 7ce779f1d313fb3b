"""The traffic of a compiled program with device memory, from its HLO text."""

import re

from imagen_jax.aot.hlo import (
  Computation,
  Instruction,
  Program,
  arrays,
  parse,
  size_of,
  trips,
)

# Instructions that move nothing by themselves.
_FREE = frozenset(
  (
    "add-dependency",
    "after-all",
    "async-start",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
  )
)
# Instructions whose computations run as programs of their own. The computation
# of a fusion or of a reduction keeps its values in registers.
_ENTERED = frozenset(("async-start", "call", "conditional", "while"))
_SLICES = frozenset(("dynamic-slice", "gather", "slice"))


def hbm_bytes(hlo: str, loop: int | None = None) -> int:
  """Counts the bytes that one run of a program reads and writes, of a device.

  Every instruction reads its operands and writes its results. What is inside a
  fusion moves nothing, and what lies in the memory on the chip (VMEM, marked
  S(1) in HLO) does not count. Of an array that is only sliced, the slices
  count, and of an array that is updated in place, the update. An instruction
  counts as often as the loops around it run, which XLA's own count of "bytes
  accessed" does not know. Of a conditional, the larger branch counts.

  Args:
    hlo: the text from compiled.as_text().
    loop: how often loops of unknown length run, if the caller knows; else they
      count once.

  Returns:
    The bytes. The padding of tiles does not count.
  """
  program, entry = parse(hlo)
  return _bytes(program, entry, loop)


def _bytes(program: Program, computation: Computation, loop: int | None) -> int:
  """Counts the bytes of one run of a computation."""
  total = 0
  for line in computation.lines.values():
    total += _own(program, computation, line)
    if line.opcode not in _ENTERED:
      continue
    called = line.called(r"(?:to_apply|calls|condition|body|\w+_computations?)")
    inner = [_bytes(program, program[name], loop) for name in called]
    if line.opcode == "conditional":
      total += max(inner, default=0)
      continue
    times = trips(program, computation, line) if line.opcode == "while" else 1
    times = loop if times is None else times
    total += sum(inner) * (1 if times is None else times)
  return total


def _own(program: Program, computation: Computation, line: Instruction) -> int:
  """Counts the bytes that an instruction moves itself."""
  if line.opcode in _FREE or line.opcode.endswith(("-done", "-update")):
    return 0
  if 'custom_call_target="AllocateBuffer"' in line.attributes:
    return 0
  operands = [computation.lines[name] for name in line.operands()]
  if line.opcode == "fusion":
    return _fusion(program[line.called("calls")[0]], operands, line)
  if line.opcode in _SLICES:
    return 2 * _stored(line.shape)
  if line.opcode == "dynamic-update-slice":
    return 2 * _stored(operands[1].shape)
  if line.opcode.endswith("-start") and line.opcode != "all-reduce-start":
    return _stored(line.shape)  # a tuple of operands and results
  read = sum(_stored(operand.shape) for operand in operands)
  return read + _stored(line.shape)


def _fusion(
  inner: Computation, operands: list[Instruction], line: Instruction
) -> int:
  """Counts the bytes of a fusion's operands and results."""
  parameters = {
    int(each.arguments): name
    for name, each in inner.lines.items()
    if each.opcode == "parameter"
  }
  total = 0
  for at, operand in enumerate(operands):
    whole = _stored(operand.shape)
    total += min(whole, _read(inner, parameters[at], whole))
  return total + _written(inner, inner.root, line.shape)


def _read(inner: Computation, name: str, whole: int) -> int:
  """Counts the bytes that a fusion reads of its parameter or of a view of it.

  They are `whole` unless only slices are taken or parts are overwritten.
  """
  total = 0
  for user, line in inner.lines.items():
    if name not in (operands := line.operands()):
      continue
    if line.opcode == "bitcast":
      total += _read(inner, user, whole)
    elif line.opcode in _SLICES and operands[0] == name:
      total += size_of(line.shape)
    elif line.opcode != "dynamic-update-slice" or operands[0] != name:
      return whole
  return total


def _written(inner: Computation, name: str, shape: str) -> int:
  """Counts the bytes that a fusion writes of one result, or of a tuple."""
  line = inner.lines[name]
  while line.opcode == "bitcast":
    line = inner.lines[line.operands()[0]]
  if line.opcode == "tuple":
    parts = re.findall(r"[a-z]\w*\[[\d,]*\](?:\{[^}]*\})?", shape)
    each = zip(line.operands(), parts, strict=False)
    return sum(_written(inner, part, shape) for part, shape in each)
  if line.opcode == "dynamic-update-slice":
    update = size_of(inner.lines[line.operands()[1]].shape)
    return min(update, _stored(shape))
  return _stored(shape)


def _stored(shape: str) -> int:
  """Returns the bytes of the arrays of a shape that lie in device memory."""
  in_hbm = lambda layout: not re.search(r"S\([1-9]", layout)
  return sum(size for size, layout in arrays(shape) if in_hbm(layout))
