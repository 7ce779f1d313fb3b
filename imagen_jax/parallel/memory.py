"""Errors of device memory, as sentences."""

import re

UNIT = "KMGT"  # of the compiler's numbers, each 1024 of the one before
# A TPU program's bytes and a device's, in the compiler's errors.
PROGRAM = (
  r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm",
  r"HLO temporaries \(([\d.]+[KMGT])\) exceeds(?: available HBM"
  r" \(([\d.]+[KMGT])\))?",
)
# The bytes that could not be allocated, and those that are free, in the errors
# of a running program on a TPU, and on a GPU or CPU.
ALLOCATION = (
  r"[Aa]ttempt(?:ing|ed) to allocate ([\d.]+[KMGT])"
  r".*?(?:There are ([\d.]+[KMGT]) free|$)",
  r"allocat(?:e|ing) (\d+) bytes",
)
REMEDY = (
  "use more devices, smaller batches or smaller images; for training also"
  " train.accumulate or stage.net.remat (imagen_jax.compile --search finds what"
  " fits)"
)


def program_bytes(said: str) -> tuple[int, int | None] | None:
  """Reads from a compiler's error what a program needs of a device.

  Args:
    said: the error's text.

  Returns:
    The bytes needed and those of a device, None if it names none; or
    None if the error is not of memory.
  """
  return _numbers(PROGRAM, said)


def too_large(said: str) -> str:
  """Explains an error of device memory in one sentence.

  Args:
    said: the text of a RESOURCE_EXHAUSTED error of JAX.
  """
  if (found := program_bytes(said)) is not None:
    needs, has = found
    what = f"the program needs {_gib(needs)} of each device"
    if has is not None:
      what += f", which has {_gib(has)}: {_gib(needs - has)} are missing"
  elif (found := _numbers(ALLOCATION, said)) is not None:
    needs, free = found
    what = f"{_gib(needs)} could not be allocated on a device"
    if free is not None:
      what += f", of which {_gib(free)} are free: {_gib(needs - free)} are"
      what += " missing"
  else:
    what = said.partition("\n")[0][:200]
  return f"out of device memory: {what}; {REMEDY}"


def _numbers(
  patterns: tuple[str, ...], said: str
) -> tuple[int, int | None] | None:
  """Returns the bytes of the first pattern that is found, None if none is."""
  for pattern in patterns:
    if found := re.search(pattern, said, re.DOTALL):
      first, second = (*found.groups(), None)[:2]
      return _bytes(first), None if second is None else _bytes(second)
  return None


def _bytes(number: str) -> int:
  """Reads a number such as "15.75G", or "1024" of bytes."""
  if number[-1] in UNIT:
    return int(float(number[:-1]) * 1024 ** (UNIT.index(number[-1]) + 1))
  return int(number)


def _gib(count: int) -> str:
  return f"{count / 2**30:.2f} GiB"
