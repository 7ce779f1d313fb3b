"""Parts of a cascade: read when used, and known by what was read."""

import pytest

from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parts import Parts


def make(states):
  """Parts whose weights are in these states, one after the other."""
  states, log = iter(states), []
  load = lambda name: log.append(name) or f"{name}'s weights"
  parts = Parts(["net", "text"], load, lambda name: next(states), make_mesh())
  return parts, log


def test_a_part_is_read_once_and_again_after_release():
  parts, log = make("1122")
  assert parts["net"] == parts["net"] == "net's weights"
  assert (log, parts.identity("net")) == (["net"], "1")
  parts.release("net")
  assert parts["net"] and log == ["net", "net"]
  assert parts.identities == {"net": "2"}
  with pytest.raises(ValueError, match="^part is 'x', expected one of net, t"):
    parts.release("x")


def test_what_changes_while_it_is_read_is_read_again():
  """As the newest checkpoint of a run that still trains."""
  parts, log = make("1222")
  assert parts["net"] and log == ["net", "net"]
  assert parts.identity("net") == "2"


def test_the_identity_is_that_of_what_was_read():
  parts, _ = make("1134")
  assert parts["net"] and parts.identity("net") == "1"
  assert parts.identity("text") == "3"  # not read yet: what there is
