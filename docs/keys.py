"""Makes the reference of the config's keys from the settings' dataclasses.

A key's description is its line in an Attributes: block, or the comment beside
it. Its range is found by trying: the settings refuse a number outside of it in
a sentence that states what they expect.
"""

import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from imagen_jax import build
from imagen_jax.build import configs, defaults, nets, runs
from imagen_jax.build.keys import fields
from imagen_jax.nets.efficient_unet import BlockSpec
from imagen_jax.training.settings import Part

HEAD = ("| key | type | default | range | meaning |", "|---|---|---|---|---|")
INTRO = """# Config keys

A config is a Python file with `get_config()`, which returns a `ConfigDict`.
Each section below is one of its sub-configs. A key that a config leaves out has
the default. `--config.SECTION.KEY=VALUE` overrides a key on the command line,
and `overrides={"SECTION.KEY": VALUE}` in Python. In a cascade's config the
sections `stage` and `sampling` lie in each stage, as in
`--config.shapes16.sampling.steps=25`.

A key whose value is a sub-config with a `kind` lists its kinds below. A range
states what the settings accept; an empty one means that any value of the type
is accepted, or that the range depends on other keys.

The other keys of a stage's config are `weights`, the path of the net's weights,
and in a cascade's config `stages`, the names of its stages, and `batch_size`,
the number of images to sample at a time.
"""


def page() -> str:
  """Returns the page of all sections and their keys."""
  lines = [INTRO]
  for name, (cls, names, kinds) in defaults.SECTIONS.items():
    lines += section(name, cls, _example(name), names, kinds)
    for key, options in kinds.items():
      if key == "aug_schedule":  # the same kinds as schedule
        continue
      lines += kinds_of(f"{name}.{key}", options)
    if name == "stage":
      lines += kinds_of("stage.net", nets.NETS, nets.NET_NAMES)
      lines += section("stage.net.blocks, each", BlockSpec, BlockSpec(8))
    if name == "data":
      lines += section("data.mixture, each", Part, Part("a"))
    if name == "text":
      lines += kinds_of(
        "text.encoder", nets.ENCODERS, nets.NET_NAMES, "text.kind"
      )
  lines += kinds_of("optimizer", runs.OPTIMIZERS)
  return "\n".join(lines)


def kinds_of(
  where: str,
  options: Mapping[str, Any],
  names: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
  key: str = "kind",
) -> Iterator[str]:
  """Yields the lines of a sub-config with kinds: a table for each.

  Args:
    where: the sub-config.
    options: the classes by their kinds.
    names: the keys whose values are names.
    key: the key of the kind.
  """
  yield from (f"## {where}", "")
  for kind, cls in options.items():
    yield f'`{key}="{kind}"`: {summary(cls)}'
    yield ""
    if isinstance(cls, type) and fields(cls):
      yield from table(cls, _instance(cls), names, {})


def section(
  name: str,
  cls: type,
  example: Any,
  names: Mapping[str, Any] = types.MappingProxyType({}),
  kinds: Mapping[str, Any] = types.MappingProxyType({}),
) -> list[str]:
  """Returns the lines of a section: what it is, and the table of its keys."""
  lines = [f"## {name}", "", summary(cls), ""]
  return [*lines, *table(cls, example, names, kinds)]


def table(
  cls: type, example: Any, names: Mapping[str, Any], kinds: Mapping[str, Any]
) -> list[str]:
  """Returns a table with a row for each key of a class."""
  about = descriptions(cls)
  lines = list(HEAD)
  for field in dataclasses.fields(cls):
    key = field.name
    if key not in fields(cls):
      continue
    options = names.get(key) or kinds.get(key) or {}
    shown = [
      f"`{key}`",
      "a `kind`" if key in kinds else _type(field.type, bool(options)),
      _default(field, names.get(key), kinds.get(key)),
      ", ".join(f"`{o}`" for o in options) or accepted(cls, field, example),
      about.get(key, ""),
    ]
    lines.append("| " + " | ".join(_cell(part) for part in shown) + " |")
  return [*lines, ""]


def summary(cls: Any) -> str:
  """Returns the first sentence of a docstring."""
  return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")


def descriptions(cls: type) -> dict[str, str]:
  """Returns what a class states of its fields, and its bases of theirs."""
  found: dict[str, str] = {}
  for part in reversed(cls.__mro__):
    if dataclasses.is_dataclass(part) and part.__module__.startswith("imagen"):
      found |= comments(part) | attributes(part.__doc__ or "")
  return found


def attributes(docstring: str) -> dict[str, str]:
  """Returns the lines of a docstring's Attributes: block by their names."""
  _, _, block = inspect.cleandoc(docstring).partition("\nAttributes:\n")
  found, name = {}, None
  for line in block.split("\n"):
    if line and not line.startswith(" "):
      break
    if start := re.match(r"  (\w+): (.*)", line):
      name = start[1]
      found[name] = start[2]
    elif name and line.strip():
      found[name] += " " + line.strip()
  return found


def comments(cls: type) -> dict[str, str]:
  """Returns the comments above and beside a class's fields by their names."""
  try:
    source = inspect.getsource(cls)
  except OSError:  # a class that a decorator made
    return {}
  found, above = {}, []
  for line in source.splitlines():
    if beside := re.match(r"  # (.*)", line):
      above.append(beside[1])
      continue
    if field := re.match(r"  (\w+): [^#]*(?:# (.*))?$", line):
      text = " ".join([*above, *([field[2]] if field[2] else [])])
      if text:
        found[field[1]] = text
    elif re.match(r"  (def|@)", line):
      break
    above = []
  return found


def accepted(cls: type, field: dataclasses.Field, example: Any) -> str:
  """Returns the range that a number's refusal states, or "" if none is."""
  hint = str(getattr(field.type, "__name__", field.type))
  if "int" not in hint and "float" not in hint:
    return ""
  if "tuple" not in hint and hint != "float":
    where = "net"
    known = {**nets.NETS, **nets.ENCODERS}
    if cls is BlockSpec or cls in known.values():
      return refusal(lambda: nets.check_sizes({field.name: 0}, where), "")
  if "tuple" in hint or not dataclasses.is_dataclass(example):
    return ""
  tries: Sequence[float] = (-2, 0, 2**40)
  if "float" in hint:
    tries = (-1.0, 0.0, float("inf"), 3.0)
  for bad in tries:
    change = {field.name: bad}
    said = refusal(lambda c=change: dataclasses.replace(example, **c), field)
    if said:
      return said
  return ""


def refusal(change: Callable[[], Any], field: Any) -> str:
  """Returns what a ValueError of a change expects, or "" if none is raised."""
  try:
    change()
  except ValueError as error:
    name = getattr(field, "name", "")
    said = re.search(r"(?:expected|must be) (.*)", str(error))
    if said and re.match(rf"(mesh )?{name}\b|config", str(error)):
      return said[1].rstrip(".")
  except (AssertionError, TypeError, ZeroDivisionError):
    pass
  return ""


def _example(section: str) -> Any:
  """Returns a section of a shipped config, to change one of its keys."""
  run = build.run(configs.resolve("shapes64", None))
  return {
    "stage": run.stage,
    "text": run.text,
    "sampling": run.sampling,
    "data": run.data,
    "train": run.training,
    "mesh": run.mesh,
  }[section]


def _instance(cls: type) -> Any:
  """Returns an object with a class's defaults, or None if it has none."""
  try:
    return cls()
  except (TypeError, ValueError):
    return None


def _type(hint: Any, named: bool) -> str:
  """Returns a type as the table shows it; a name is one of the range."""
  if named:
    return "a name"
  text = hint.__name__ if isinstance(hint, type) else str(hint)
  if text == "Any" or "Callable" in text:
    return "any"
  return re.sub(r"[\w.]+\.(\w+)", r"\1", text)


def _default(
  field: dataclasses.Field,
  names: Mapping[str, Any] | None,
  kinds: Mapping[str, Any] | None,
) -> str:
  """Returns a field's default as a config writes it."""
  if field.default is dataclasses.MISSING:
    return "needed"
  if kinds:
    return "".join(
      f"`{kind}`" for kind, cls in kinds.items() if type(field.default) is cls
    )
  if names:
    found = [name for name, value in names.items() if value == field.default]
    return f"`{found[0]}`" if found else f"`{field.default}`"
  if isinstance(field.default, tuple) and any(
    dataclasses.is_dataclass(part) for part in field.default
  ):
    return "the rows of App. F.2"
  return f"`{field.default!r}`"


def _cell(text: str) -> str:
  """Returns text for a cell of a Markdown table."""
  return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")
