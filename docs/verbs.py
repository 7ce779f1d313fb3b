"""Makes the reference of the verbs' flags from the verbs' define_flags."""

import importlib
import re
from collections.abc import Iterator

from absl import flags

# Verbs by module, each with the flags that it defines.
VERBS = (
  "train",
  "sample",
  "evaluate",
  "export",
  "compile",
  "pretrain",
  "prepare",
  "embed",
)
PROGRAMS = ("text.train_vocabulary", "shapes.write_captions")


def page() -> str:
  """Returns the page of all verbs and their flags."""
  lines = [
    "# Verbs and flags",
    "",
    "Each verb is a module: `python -m imagen_jax.VERB --FLAG=VALUE`. `--help`"
    " prints the same. `--config.KEY=VALUE` overrides any of the"
    " [config keys](config_keys.md). [Exit codes](../exit_codes.md) are common"
    " to all verbs.",
    "",
  ]
  for name in (*VERBS, *PROGRAMS):
    module = importlib.import_module(f"imagen_jax.{name}")
    first = (module.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    lines += [f"## {name}", "", first, ""]
    lines += ["| flag | type | default | meaning |", "|---|---|---|---|"]
    lines += rows(module)
    lines.append("")
  return "\n".join(lines)


def rows(module) -> Iterator[str]:
  """Yields a row of the table for each flag that a verb defines."""
  values = flags.FlagValues()
  module.define_flags(values)
  for name in sorted(values):
    flag = values[name]
    kind = flag.parser.flag_type() if flag.parser else flag.flag_type()
    choices = getattr(flag.parser, "enum_values", None)
    if choices:
      kind = ", ".join(f"`{choice}`" for choice in choices)
    shown = f"`--[no]{name}`" if flag.boolean else f"`--{name}`"
    # absl adds an enum's values before the text, and a note after it.
    meaning = re.sub(r"^<[^>]*>: ", "", flag.help or "")
    meaning, repeated, _ = meaning.partition(";\n    repeat this option")
    meaning = meaning.rstrip(";")
    if repeated and "repeatable" not in meaning:
      meaning += " Repeatable."
    meaning = meaning.replace("|", "\\|").replace("\n", " ")
    yield f"| {shown} | {kind} | {default(flag)} | {meaning} |"


def default(flag: flags.Flag) -> str:
  """Returns a flag's default as the table shows it."""
  if flag.default in (None, []):
    return "-"
  return f"`{flag.default}`"
