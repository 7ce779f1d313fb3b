"""The parts of a cascade whose weights are read when they are first used."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh


class Parts:
  """Holds a cascade's parts: its stages' weights and its text encoder.

  Attributes:
    identities: what the weights are, by part, as they were last read.
  """

  def __init__(
    self,
    names: Sequence[str],
    load: Callable[[str], Any],
    identify: Callable[[str], str],
    devices: Mesh,
  ):
    """Reads nothing yet.

    Args:
      names: the parts.
      load: returns the part of a name, its weights placed.
      identify: returns a text that changes with the weights of a name.
      devices: the mesh that load is called under.
    """
    self.identities: dict[str, str] = {}
    self._names = tuple(names)
    self._load = load
    self._identify = identify
    self._devices = devices
    self._loaded: dict[str, Any] = {}

  def __getitem__(self, name: str) -> Any:
    """Returns a part, which is read if it is not there.

    Raises:
      ValueError: the weights cannot be read.
    """
    while name not in self._loaded:
      before = self._identify(name)
      with jax.set_mesh(self._devices):
        part = self._load(name)
      # A run that still trains may have saved meanwhile: then read again.
      if self._identify(name) == before:
        self._loaded[name], self.identities[name] = part, before
    return self._loaded[name]

  def __contains__(self, name: str) -> bool:
    """Whether a part is in memory."""
    return name in self._loaded

  def identity(self, name: str) -> str:
    """Returns a text that changes with a part's weights.

    Of a part that is in memory, it is that of the weights that were read.

    Raises:
      ValueError: there are no such weights.
    """
    if name in self._loaded:
      return self.identities[name]
    return self._identify(name)

  def release(self, name: str) -> None:
    """Frees a part; the next use reads it again.

    Raises:
      ValueError: there is no such part.
    """
    if name not in self._names:
      raise ValueError(
        f"part is {name!r}, expected one of {', '.join(self._names)}"
      )
    self._loaded.pop(name, None)
