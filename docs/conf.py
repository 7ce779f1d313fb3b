"""Configures Sphinx. docs/build.sh builds the site.

Before each build, generate.py writes the pages that come from the code.
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import flax.linen as nn  # noqa: E402
import generate  # noqa: E402

import imagen_jax  # noqa: E402

project = "imagen_jax"
author = "The authors of imagen_jax"
release = version = imagen_jax.__version__

extensions = [
  "myst_parser",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",  # the source of every documented name
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"imagen_jax {version}"
html_copy_source = False
smartquotes = False  # "--flag" is no dash, and eps' no quotation

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_default_options = {
  "members": True,
  "special-members": "__call__",
}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an "Attributes:" block and a property are one name

# Two modules have a Job, and two have a Stopped. A type that is written as text
# or an entry of Raises: links to one of them.
suppress_warnings = ["ref.python"]

# Names in text must exist. The types in signatures are also of other packages,
# whose pages a build without a network cannot read.
nitpicky = True
nitpick_ignore_regex = [
  ("py:class", ".*"),
  ("py:exc", ".*"),
  ("py:obj", r".*\.T"),  # a type variable
]


def readable_docstring(app, what, name, obj, options, lines):
  """Turns a docstring's plain text into reStructuredText, before napoleon."""
  if what == "class" and issubclass(obj, nn.Module):
    lines += generate.fields_block(obj)
  lines[:] = generate.restructured(lines)


def short_signature(app, what, name, obj, options, signature, returns):
  """Drops a linen module's signature: its fields are a list below it."""
  if what == "class" and issubclass(obj, nn.Module):
    return "", returns
  return None


def skip_member(app, what, name, obj, skip, options):
  """Skips what is another package's, such as a field's default function."""
  home = getattr(obj, "__module__", None) or ""
  foreign = callable(obj) and not home.startswith("imagen_jax")
  return True if foreign and what == "class" else None


def read_source(app, docname, source):
  """Points links to the repository's files at their pages of the site."""
  if docname.startswith("generated/"):
    return
  path = HERE / f"{docname}.md"
  source[0] = generate.relink(source[0], path, path)


def setup(app):
  """Registers the functions above."""
  app.connect("config-inited", lambda app, config: generate.write(HERE))
  app.connect("source-read", read_source)
  app.connect("autodoc-process-docstring", readable_docstring, priority=400)
  app.connect("autodoc-skip-member", skip_member)
  app.connect("autodoc-process-signature", short_signature)
