"""The parts that launchers share: flags, checks of values, running commands.

The launchers need Python's standard library only. Every value that becomes part
of a command, a path, a file or a selector has one pattern, here.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
import sys

if sys.version_info < (3, 11):  # noqa: UP036 (a laptop's python3 may be older)
  sys.exit(
    f"launch: this is Python {sys.version.split()[0]}, expected 3.11 or newer, "
    "as in: python3.11 launch/tpu_vm.py --help"
  )

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of value: its pattern, and the same in words."""

  pattern: str
  expected: str

  def check(self, value: str, source: str) -> str:
    """Returns the value; ValueError names the source if it does not match."""
    if not re.fullmatch(self.pattern, value, re.ASCII):
      raise ValueError(f"{source} is {shown(value)}, expected {self.expected}.")
    return value


LABEL = "lower-case letters, digits and hyphens, of which the first is a letter"
NAME = Kind(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", f"at most 63 {LABEL}")
WORKLOAD = Kind(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", f"at most 40 {LABEL}")
JOB = Kind(
  r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]{0,127}",
  "at most 128 letters, digits and _.,=+- that begin with no sign",
)
ZONE = Kind(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", "a zone such as us-east5-a")
PROJECT = Kind(
  r"[a-z0-9]([a-z0-9.:-]{0,98}[a-z0-9])?", "a project's ID such as my-project"
)
TYPE = Kind(
  r"[a-z][a-z0-9]*-[0-9]+(x[0-9]+)*", "a type such as v5p-128 or tpu7x-2x2x4"
)
VERSION = Kind(
  r"[a-z0-9]([a-z0-9._-]{0,98}[a-z0-9])?", "a version such as v2-alpha-tpuv6e"
)
IMAGE = Kind(
  r"[a-z0-9][A-Za-z0-9._/:@-]{0,254}",
  "an image such as us-docker.pkg.dev/PROJECT/REPOSITORY/NAME:TAG",
)
FLAGS_FILE = Kind(r"[a-z0-9]{1,20}", "the name of a file of launch/env")
WORKER = Kind(r"[0-9]{1,5}|all", "a worker's number or all")
INDEX = Kind(r"[0-9]{1,5}", "a host's number")
COUNT = Kind(r"[1-9][0-9]{0,8}", "a number of at least 1")
TIME = Kind(
  r"[0-9]+(-[0-9]+)?(:[0-9]+){0,2}|UNLIMITED|INFINITE",
  "a time of sbatch such as 1-12:00:00",
)
LIST = Kind(
  r"[A-Za-z0-9_][A-Za-z0-9_.,@-]{0,127}", "names of letters, digits and _.,@-"
)
VARIABLE = Kind(r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable")
EXTRA = Kind(
  r"--?[A-Za-z][A-Za-z0-9_-]*(=[^\x00-\x1f\x7f-\x9f\u2028\u2029]*)?",
  "one flag on one line, such as --reserved or --network=NET",
)
# What ends a line in YAML, or may not stand in it.
BREAKS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
SECRET_WORD = r"(?:token|secret|password|passwd|(?:api|access|private)[_-]?key)"
SECRET_NAME = re.compile(rf"(?:^|[^A-Za-z0-9]){SECRET_WORD}$", re.IGNORECASE)
# NAME=VALUE, where a reference ($NAME) and a small number are no secrets.
SECRET_SETTING = re.compile(
  rf"\b((?:\w*[_-])?{SECRET_WORD})=(?!\$|[0-9]{{1,6}}\b)\S", re.IGNORECASE
)
# Tokens of Hugging Face, Google, GitHub, OpenAI and Slack; private keys.
SECRET_VALUE = re.compile(
  r"\bhf_[A-Za-z0-9]{20,}|\bya29\.[\w-]{20,}|\bAIza[\w-]{30,}|"
  r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{20,}|\bsk-[\w-]{20,}|"
  r"\bxox[abp]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)


class CommandError(Exception):
  """A command failed and printed why; `code` is its exit code."""

  def __init__(self, code: int):
    super().__init__(f"exit code {code}")
    self.code = code


def shown(value: str) -> str:
  """Returns a value in quotes, on one line, shortened and escaped."""
  return repr(value if len(value) <= 80 else f"{value[:77]}...")


class Parser(argparse.ArgumentParser):
  """The flags of a launcher: --FLAG=VALUE ..., then -- and a command."""

  def __init__(self, program: str, text: str, usage: str):
    super().__init__(
      prog=program,
      usage=f"{program} {usage}",
      description=text,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    self.kinds: dict[str, tuple[str, Kind, str, str]] = {}

  def define(
    self, flag: str, kind: Kind, text: str, *, default="", variable=""
  ) -> None:
    """Adds a flag whose value is of a kind, which a variable may give too."""
    name = flag.removeprefix("--")
    self.kinds[name] = (flag, kind, default, variable)
    beside = [f"or {variable}"] if variable else []
    beside += [f"{default} by default"] if default else []
    text += f" ({', '.join(beside)})" if beside else ""
    self.add_argument(flag, metavar="", help=text.replace("%", "%%"))

  def define_place(self) -> None:
    """Adds --zone and --project, which gcloud's configuration may give."""
    self.define("--zone", ZONE, "else gcloud's", variable="ZONE")
    self.define("--project", PROJECT, "else gcloud's", variable="PROJECT_ID")

  def define_common(self, platform: str) -> None:
    """Adds --extra and --dry_run."""
    if platform:
      self.add_argument(
        "--extra",
        metavar="",
        action="append",
        default=[],
        help=f"a flag for {platform}; repeatable",
      )
    self.add_argument(
      "--dry_run",
      action="store_true",
      help="prints the commands and runs none",
    )

  def error(self, message: str):
    """Raises ValueError, in the words of the other refusals."""
    if found := re.fullmatch(r"argument (--\w+): expected one arg.*", message):
      flag = found[1]
      message = f"flag '{flag}' has no value, expected {flag}=VALUE"
    elif found := re.fullmatch(r"argument (--\w+): ignored .*", message):
      message = f"flag '{found[1]}' has a value, expected {found[1]} alone"
    raise ValueError(f"{message}.")

  def read(self, words: list[str]) -> argparse.Namespace:
    """Returns the flags, checked, and `command`, which follows `--`.

    Raises:
      ValueError: a flag is unknown, or a value is not of its kind.
    """
    at = words.index("--") if "--" in words else len(words)
    for word in words[:at]:
      if word.endswith("=--"):  # which argparse takes for the end of flags
        raise ValueError(f"{word[:-3]} is '--', expected a value.")
    args, rest = self.parse_known_args(words[:at])
    for word in rest:
      if word.startswith("-"):
        raise ValueError(
          f"flag {shown(word)} is unknown, expected one of those in --help."
        )
      raise ValueError(
        f"argument {shown(word)} is unexpected, expected flags, then -- "
        "COMMAND."
      )
    for name, (flag, kind, default, variable) in self.kinds.items():
      value, source = getattr(args, name), flag
      if value is None and os.environ.get(variable):
        value, source = os.environ[variable], variable
      if value is None:
        value = default
      elif not value:
        raise ValueError(f"{flag} is needed, and is '', see --help.")
      else:
        kind.check(value, source)
      setattr(args, name, value)
    for word in getattr(args, "extra", ()):
      EXTRA.check(word, "--extra")
    args.command = words[at + 1 :]
    refuse_secrets([*args.command, *getattr(args, "extra", ())])
    return args


def need(args: argparse.Namespace, *names: str) -> None:
  """Raises ValueError if a flag has no value."""
  for name in names:
    if not getattr(args, name):
      raise ValueError(f"--{name} is needed, see --help.")


def need_command(args: argparse.Namespace) -> None:
  """Raises ValueError if no command follows the flags, or only its flags do."""
  if not args.command:
    raise ValueError(
      "what to run is needed, such as -- python -m imagen_jax.train "
      "--config=..."
    )
  first = args.command[0]
  if not first or first.startswith("-"):  # srun and others would take it
    raise ValueError(
      f"the command begins with {shown(first)}, expected a program such as "
      "python."
    )


def need_verb(words: list[str], verbs: tuple[str, ...]) -> str:
  """Returns the verb, the first word; ValueError names all of them."""
  known = f"{', '.join(verbs[:-1])} or {verbs[-1]}"
  verb = words[0] if words else ""
  if not verb or verb.startswith("-"):
    raise ValueError(f"a verb is needed: {known}.")
  if verb not in verbs:
    raise ValueError(f"verb {shown(verb)} is unknown, expected {known}.")
  return verb


def need_env(name: str) -> pathlib.Path:
  """Returns the file launch/env/NAME.sh; ValueError if there is none."""
  path = ROOT / "launch" / "env" / f"{FLAGS_FILE.check(name, '--env')}.sh"
  if not path.is_file():
    known = " ".join(sorted(file.stem for file in path.parent.glob("*.sh")))
    raise ValueError(
      f"there is no launch/env/{name}.sh, expected one of {known}."
    )
  return path


def need_one_line(command: list[str]) -> None:
  """Raises ValueError for a command that a platform would break in two."""
  for word in command:
    if BREAKS.search(word):
      raise ValueError(
        f"the command has a line break or control character in {shown(word)}, "
        "which is not passed on, expected none."
      )


def refuse_secrets(words: list[str]) -> None:
  """Raises ValueError if words hold a token, which ps and logs would show."""
  exported = {
    value: name
    for name, value in os.environ.items()
    if SECRET_NAME.search(name) and len(value) >= 8
  }
  for word in words:
    inside = next((exported[text] for text in exported if text in word), None)
    setting = SECRET_SETTING.search(word)
    if not (inside or setting or SECRET_VALUE.search(word)):
      continue
    name = inside or (setting and setting[1]) or "NAME"
    raise ValueError(
      "the command or --extra holds a secret, which ps and logs would show, "
      "expected it in an exported variable; tpu_vm.sh and xpk.sh pass that on "
      f"with --pass_env={name}."
    )


def passed_variables(names: list[str]) -> dict[str, str]:
  """Returns the variables of --pass_env; ValueError if one is not exported."""
  found = {}
  for name in names:
    VARIABLE.check(name, "--pass_env")
    value = os.environ.get(name)
    if value is None:
      raise ValueError(f"--pass_env={name} is not set, expected it exported.")
    if BREAKS.search(value):
      raise ValueError(
        f"--pass_env={name} holds a line break or control character, expected "
        "none."
      )
    found[name] = value
  return found


def generation_of(accelerator: str) -> str:
  """Returns a type's generation, v5e for v5litepod-16; "" if unknown."""
  generation = accelerator.partition("-")[0]
  known = {name: name for name in ("v4", "v5e", "v5p", "v6e", "tpu7x")}
  return (known | {"v5litepod": "v5e"}).get(generation, "")


def platform_type(accelerator: str) -> str:
  """Returns a type in Google Cloud's words."""
  return re.sub("^v5e-", "v5litepod-", accelerator)


def run(words: list[str], *, dry_run: bool, check: bool = True) -> int:
  """Shows a command and runs it in the repository's root; or shows it only.

  Returns:
    Its exit code.

  Raises:
    CommandError: it failed, and `check` is set.
  """
  if dry_run:
    print(shlex.join(words), flush=True)
    return 0
  print(f"+ {shlex.join(words)}", file=sys.stderr, flush=True)
  try:
    code = subprocess.run(words, cwd=ROOT).returncode
  except OSError as error:
    print(f"{words[0]}: {error.strerror}", file=sys.stderr)
    code = 127
  code = 128 - code if code < 0 else code  # as a shell has it of a signal
  if code and check:
    raise CommandError(code)
  return code


def main(parser: Parser, body) -> None:
  """Runs body(parser, words); a mistake is one line and exit 2."""
  # A dry run prints file names back as they were given.
  sys.stdout.reconfigure(errors="surrogateescape")
  words = sys.argv[1:]
  before = words[: words.index("--")] if "--" in words else words
  if {"--help", "-h"} & {*before}:
    parser.print_help()
    sys.exit(0)
  try:
    sys.exit(body(parser, words))
  except ValueError as error:
    print(f"{parser.prog}: {error}", file=sys.stderr)
    sys.exit(2)
  except OSError as error:
    name = f"{error.filename}: " if error.filename else ""
    print(f"{parser.prog}: {name}{error.strerror}", file=sys.stderr)
    sys.exit(1)
  except CommandError as error:
    sys.exit(error.code)
  except KeyboardInterrupt:
    sys.exit(130)
