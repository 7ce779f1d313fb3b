"""Reads the text of a compiled program: instructions, sizes, trip counts."""

import dataclasses
import math
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Instruction:
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
class Computation:
  """A named list of instructions."""

  name: str
  lines: dict[str, Instruction] = dataclasses.field(default_factory=dict)
  root: str = ""

  def source(self, name: str) -> Instruction:
    """Returns the instruction that makes a value, behind its copies."""
    line = self.lines[name]
    while line.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
      line = self.lines[line.operands()[0]]
    return line

  def element(self, name: str, at: int) -> Instruction | None:
    """Returns the instruction that makes a part of a tuple, if it is here."""
    line = self.source(name)
    parts = line.operands() if line.opcode == "tuple" else []
    return self.source(parts[at]) if at < len(parts) else None

  def carried(self, line: Instruction) -> int | None:
    """Returns the part of the parameter an instruction takes, if any."""
    if line.opcode != "get-tuple-element":
      return None
    if self.source(line.operands()[0]).opcode != "parameter":
      return None
    return int(re.search(r"\bindex=(\d+)", line.attributes)[1])


Program = dict[str, Computation]

_HEAD = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(
  r"\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*?)\)(?:, (.*))?$"
)


def parse(hlo: str) -> tuple[Program, Computation]:
  """Parses HLO text into its computations, and returns the entry among them."""
  program: Program = {}
  for text in hlo.split("\n"):
    if head := _HEAD.match(text):
      computation = program[head[1]] = Computation(head[1])
    elif found := _LINE.match(text):
      root, name, *rest = found.groups(default="")
      computation.lines[name] = Instruction(*rest)
      computation.root = name if root else computation.root
  (entry,) = re.findall(r"^ENTRY %?([\w.-]+)", hlo, re.MULTILINE)
  return program, program[entry]


def arrays(shape: str) -> Iterator[tuple[int, str]]:
  """Yields bytes and layout of an array, or of the arrays of a tuple."""
  found = re.findall(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", shape)
  for dtype, sides, layout in found:
    width = re.search(r"\d+", dtype.replace("pred", "u8"))
    bits = int(width[0]) if width else 0  # a token has no width
    count = math.prod(map(int, filter(None, sides.split(","))))
    yield -(-bits * count // 8), layout


def size_of(shape: str) -> int:
  """Returns the bytes of an array, or of a tuple of arrays."""
  return sum(size for size, _ in arrays(shape))


def continues(computation: Computation, line: Instruction) -> bool:
  """Returns True if a collective continues one that another fusion has started.

  On TPUs a collective is copied to the fusions that start it, compute meanwhile
  and end it.
  """
  return "async_collective_fusion_config" in line.attributes and not any(
    "AsyncCollectiveStart" in other.attributes
    for other in computation.lines.values()
  )


def trips(
  program: Program, outer: Computation, loop: Instruction
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


def _integer(line: Instruction | None) -> int | None:
  """Returns the value of an integer constant, or None."""
  if line is None or line.opcode != "constant":
    return None
  whole = re.fullmatch(r"-?\d+", line.arguments)
  return int(whole[0]) if whole else None
