"""The opening words of docstrings, and their Args and Attributes sections.

Tests are left out: a test's docstring states a fact, often as the continuation
of its name.
"""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = ("imagen_jax", "configs", "launch", "benchmarks", "docs")
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
DOCUMENTED = ast.Module | ast.ClassDef | FUNCTION
NEVER = re.compile(
  r"(what|whether|how|where|of|as|it|this|these|those|the same)\b", re.I
)
# These verbs may come before "that". Other words with an s are nouns there.
STATING = ("Checks", "Ensures", "Logs", "Marks", "Prints", "States", "Warns")


def sources() -> dict[str, str]:
  """Returns {path: text} of all programs."""
  paths = [path for name in PROGRAMS for path in (ROOT / name).rglob("*.py")]
  named = {str(path.relative_to(ROOT)): path for path in sorted(paths)}
  return {
    name: path.read_text("utf-8")
    for name, path in named.items()
    if not name.startswith("imagen_jax/configs")  # a link to configs/
  }


def documented(text: str) -> Iterator[tuple[ast.AST, str, bool]]:
  """Yields every definition, its docstring, and True for a class's method."""
  tree = ast.parse(text)
  nodes = [(tree, False)]
  for parent in ast.walk(tree):
    in_class = isinstance(parent, ast.ClassDef)
    nodes += [(node, in_class) for node in ast.iter_child_nodes(parent)]
  for node, in_class in nodes:
    if isinstance(node, DOCUMENTED) and (doc := ast.get_docstring(node)):
      yield node, doc, in_class and isinstance(node, FUNCTION)


def decorated(node: ast.AST, name: str) -> bool:
  """Returns True if the text of one of the decorators contains a name."""
  return any(name in ast.unparse(part) for part in node.decorator_list)


def found_in(texts: dict[str, str], check) -> dict[str, list[str]]:
  """Returns {path: faults} of the files in which a check finds any."""
  faults = {path: check(text) for path, text in texts.items()}
  return {path: found for path, found in faults.items() if found}


# Opening words.


def opens_with_verb(doc: str) -> bool:
  """Returns True if the first word looks like a verb in the third person."""
  first, second = [*re.findall(r"[\w-]+", doc), ""][:2]
  if not re.fullmatch(r"[A-Z][a-z-]*[^s]s", first) or NEVER.match(doc):
    return False
  if first in STATING:
    return True
  return second not in ("of", "that", "which", "whose", "who")


def bad_openings(text: str) -> list[str]:
  """Returns the docstrings whose first word is of the wrong kind."""
  bad = []
  for node, doc, _ in documented(text):
    if not isinstance(node, FUNCTION):
      good = not NEVER.match(doc)
    elif decorated(node, "property"):
      good = re.match(r"(The|A|An|True)\b(?! same)", doc)
    else:
      good = opens_with_verb(doc)
    if not good:
      name = getattr(node, "name", "module")
      bad.append(f"{name}: {doc.splitlines()[0]}")
  return bad


def test_docstrings_open_with_the_right_word():
  assert found_in(sources(), bad_openings) == {}


@pytest.mark.parametrize(
  "words",
  ["What", "Whether", "How", "Where", "Of", "As", "It", "This", "The same"],
)
@pytest.mark.parametrize(
  "head", ["", "class C:\n  ", "def f():\n  ", "@property\ndef f(x):\n  "]
)
def test_an_opening_of_no_definition_is_found(head, words):
  (found,) = bad_openings(f'{head}"""{words} x is."""')
  assert found.endswith(f": {words} x is.")


@pytest.mark.parametrize("doc", ["Returns x.", "All-gathers x.", "Logs that."])
def test_a_function_opens_with_a_verb(doc):
  for head in ("def f():\n  ", "class C:\n  async def f(self):\n    "):
    assert bad_openings(f'{head}"""{doc}"""') == []
  assert bad_openings(f'@cached_property\ndef f(x):\n  """{doc}"""') != []


@pytest.mark.parametrize(
  "doc", ["Return x.", "Pass x.", "returns x.", "Sets of x.", "Sets that hold."]
)
def test_no_other_form_opens_a_docstring(doc):
  for head in ("def f():", "@property\ndef f(self):"):
    assert bad_openings(f'{head}\n  """{doc}"""') == [f"f: {doc}"]
  for good in ("The image.", "True if x."):
    assert bad_openings(f'@property\ndef f(self):\n  """{good}"""') == []
    assert bad_openings(f'def f(self):\n  """{good}"""') != []


# Args and Attributes sections.


def section(doc: str, name: str) -> list[str] | None:
  """Returns the names that a section describes; None without that section."""
  found = re.search(rf"^{name}:\n((?:  .*\n|\n)+)", f"{doc}\n", re.M)
  if not found:
    return None
  heads = re.findall(r"^  (\*{0,2}\w[\w, *]*):", found[1], re.M)
  return [name for head in heads for name in head.split(", ")]


def parameters(node: ast.AST, is_method: bool) -> list[str]:
  """Returns a function's parameters as its Args section should name them."""
  args = node.args
  names = [arg.arg for arg in (*args.posonlyargs, *args.args)]
  if is_method and not decorated(node, "staticmethod"):
    names = names[1:]
  names += [f"*{args.vararg.arg}"] if args.vararg else []
  names += [arg.arg for arg in args.kwonlyargs]
  return names + ([f"**{args.kwarg.arg}"] if args.kwarg else [])


def class_names(node: ast.ClassDef) -> tuple[list[str], list[str], set[str]]:
  """Returns the parameters of __init__, the fields and all attributes."""
  fields, names = [], {p.name for p in node.body if isinstance(p, FUNCTION)}
  init = [p for p in node.body if getattr(p, "name", "") == "__init__"]
  for part in node.body:
    if isinstance(part, ast.AnnAssign):
      names.add(part.target.id)
      if "ClassVar" not in ast.unparse(part.annotation):
        fields.append(part.target.id)
  for part in ast.walk(node):
    if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
      names.add(part.attr)
  return parameters(init[0], True) if init else fields, fields, names


def bad_sections(text: str) -> list[str]:
  """Returns what has a section whose names are not those of the code.

  Args names all parameters in order. Attributes does so with the fields of a
  dataclass; for other classes it may leave attributes out.
  """
  bad = []
  for node, doc, is_method in documented(text):
    args, attributes = section(doc, "Args"), section(doc, "Attributes")
    if isinstance(node, FUNCTION):
      good = attributes is None and args in (
        None,
        parameters(node, is_method),
      )
    elif isinstance(node, ast.ClassDef):
      of_init, fields, names = class_names(node)
      good = args in (None, of_init) and (
        attributes in (None, fields)
        if decorated(node, "dataclass")
        else set(attributes or ()) <= names
      )
    else:
      good = args is None and attributes is None
    if not good:
      bad.append(getattr(node, "name", "module"))
  return bad


def test_sections_name_what_the_code_has():
  assert found_in(sources(), bad_sections) == {}


FUNCTION_DOC = '''def f({args}):
  """Adds.

  Args:
    a: one: a number,
      or: none.
    *b: more.

    c, **d: named.

  Returns:
    x: a sum.
  """
'''
CLASS_DOC = '''@dataclasses.dataclass
class C:
  """A class.

  Attributes:
    a: one.
    b: two.
  """
  kind: ClassVar[str] = ""
{fields}
'''


@pytest.mark.parametrize(
  "args, bad",
  [
    ("a, *b, c, **d", []),
    ("self, a, *b, c, **d", ["f"]),
    ("a, *b, c, e, **d", ["f"]),
    ("a, *b, **d", ["f"]),
    ("c, *b, a, **d", ["f"]),
    ("a, b, c, d", ["f"]),
  ],
)
def test_arguments_left_out_added_or_moved_are_found(args, bad):
  text = FUNCTION_DOC.format(args=args)
  assert bad_sections(text + "  pass") == bad
  method = "class C:\n" + re.sub("^", "  ", text + "  pass", flags=re.M)
  assert bad_sections(method.replace("f(", "f(self, ")) == bad
  assert bad_sections(method.replace("  def", "  @staticmethod\n  def")) == bad


@pytest.mark.parametrize(
  "fields, bad, bad_if_plain",
  [
    ("  a: int\n  b: int", [], []),
    ("  b: int\n  a: int", ["C"], []),
    ("  a: int\n  b: int\n  c: int", ["C"], []),
    ("  a: int", ["C"], ["C"]),
    ("  def b(self):\n    self.a = 1", ["C"], []),
  ],
)
def test_attributes_left_out_added_or_moved_are_found(
  fields, bad, bad_if_plain
):
  text = CLASS_DOC.format(fields=fields)
  assert bad_sections(text) == bad
  assert bad_sections(text.split("\n", 1)[1]) == bad_if_plain
