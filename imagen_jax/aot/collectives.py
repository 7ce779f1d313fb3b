"""The traffic of a compiled program between devices, read from its HLO text."""

import dataclasses
import math
import re

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
  program = _parse(hlo)
  (entry,) = re.findall(r"^ENTRY %?([\w.-]+)", hlo, re.MULTILINE)
  return _traffic(program, program[entry], loop)


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """A line `%name = shape opcode(arguments), attributes`."""

  shape: str
  opcode: str
  arguments: str
  attributes: str

  def operands(self) -> list[str]:
    """Returns the names of the operands."""
    return re.findall(r"%([\w.-]+)", self.arguments)

  def called(self, key: str) -> list[str]:
    """Returns the computations named under `key`, a regular expression."""
    values = re.findall(rf"\b{key}=(%[\w.-]+|{{[^}}]*}})", self.attributes)
    return re.findall(r"%([\w.-]+)", " ".join(values))


@dataclasses.dataclass
class _Computation:
  """A named list of instructions."""

  name: str
  lines: dict[str, _Instruction] = dataclasses.field(default_factory=dict)
  root: str = ""

  def source(self, name: str) -> _Instruction:
    """Returns the instruction that makes a value, behind its copies."""
    line = self.lines[name]
    while line.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
      line = self.lines[line.operands()[0]]
    return line

  def element(self, name: str, at: int) -> _Instruction | None:
    """Returns the instruction that makes a part of a tuple, if it is here."""
    line = self.source(name)
    parts = line.operands() if line.opcode == "tuple" else []
    return self.source(parts[at]) if at < len(parts) else None

  def carried(self, line: _Instruction) -> int | None:
    """Returns which part of the parameter an instruction takes, if any."""
    if line.opcode != "get-tuple-element":
      return None
    if self.source(line.operands()[0]).opcode != "parameter":
      return None
    return int(re.search(r"\bindex=(\d+)", line.attributes)[1])


_HEAD = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(
  r"\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*?)\)(?:, (.*))?$"
)


def _parse(hlo: str) -> dict[str, _Computation]:
  """Parses HLO text into its computations."""
  program: dict[str, _Computation] = {}
  for text in hlo.split("\n"):
    if head := _HEAD.match(text):
      computation = program[head[1]] = _Computation(head[1])
    elif found := _LINE.match(text):
      root, name, *rest = found.groups(default="")
      computation.lines[name] = _Instruction(*rest)
      computation.root = name if root else computation.root
  return program


def _traffic(
  program: dict[str, _Computation],
  computation: _Computation,
  loop: int | None,
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
      times = _trips(program, computation, line)
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


def _own(computation: _Computation, line: _Instruction) -> dict[str, Traffic]:
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
  return {kind: Traffic(1, _size(line.shape))}


def _operands(computation: _Computation, line: _Instruction) -> list[int]:
  """Returns the bytes of each operand."""
  return [_size(computation.lines[name].shape) for name in line.operands()]


def _continues(computation: _Computation, line: _Instruction) -> bool:
  """Returns True if a collective continues one that another fusion has started.

  On TPUs a collective is copied to the fusions that start it, compute meanwhile
  and end it.
  """
  return "async_collective_fusion_config" in line.attributes and not any(
    "AsyncCollectiveStart" in other.attributes
    for other in computation.lines.values()
  )


def _size(shape: str) -> int:
  """Returns the bytes of an array, or of a tuple of arrays."""
  total = 0
  for dtype, sides in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape):
    width = re.search(r"\d+", dtype.replace("pred", "u8"))
    bits = int(width[0]) if width else 0  # a token has no width
    total += -(-bits * math.prod(map(int, filter(None, sides.split(",")))) // 8)
  return total


def _trips(
  program: dict[str, _Computation], outer: _Computation, loop: _Instruction
) -> int | None:
  """Returns how often a loop `for i in range(a, b, step)` runs; else None.

  Compilers for other devices than TPUs state the number. On TPUs it is derived:
  the counter starts above 0 if iterations were peeled off, and its step is 2 if
  two iterations were merged.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  condition = program[loop.called("condition")[0]]
  body = program[loop.called("body")[0]]
  test = condition.source(condition.root)
  if test.opcode != "compare" or "direction=LT" not in test.attributes:
    return None
  counter, stop = map(condition.source, test.operands())
  at = condition.carried(counter)
  if at is None:
    return None
  start = outer.element(loop.operands()[0], at)
  after = body.element(body.root, at)
  if after is None or after.opcode != "add":
    return None
  terms = map(body.source, after.operands())
  steps = [term for term in terms if body.carried(term) != at]
  values = [_integer(line) for line in (start, stop, *steps)]
  if len(values) != 3 or None in values or values[2] < 1:
    return None
  return len(range(*values))


def _integer(line: _Instruction | None) -> int | None:
  """Returns the value of an integer constant, or None."""
  if line is None or line.opcode != "constant":
    return None
  whole = re.fullmatch(r"-?\d+", line.arguments)
  return int(whole[0]) if whole else None
