"""Parts of a cascade, whose weights are read when they are first used."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh


class Parts:
  """Holds a cascade's parts: its stages' weights and its text encoder.

  Attributes:
    identities: for each part that was read, a text that identifies its weights
      as they were last read.
  """

  def __init__(
    self,
    names: Sequence[str],
    load: Callable[[str], Any],
    identify: Callable[[str], str],
    devices: Mesh,
  ):
    """Stores the arguments and reads no weights yet.

    Args:
      names: the names of the parts.
      load: called as load(name), returns a part with its weights placed.
      identify: called as identify(name), returns a text that changes with the
        weights.
      devices: the mesh that is set while load runs.
    """
    self.identities: dict[str, str] = {}
    self._names = tuple(names)
    self._load = load
    self._identify = identify
    self._devices = devices
    self._loaded: dict[str, Any] = {}

  def __getitem__(self, name: str) -> Any:
    """Returns a part, which is read if it is not in memory.

    Raises:
      ValueError: if the weights cannot be read.
    """
    while name not in self._loaded:
      before = self._identify(name)
      with jax.set_mesh(self._devices):
        part = self._load(name)
      # A run that still trains may have saved during the read: read again then.
      if self._identify(name) == before:
        self._loaded[name], self.identities[name] = part, before
    return self._loaded[name]

  def __contains__(self, name: str) -> bool:
    """Returns whether a part is in memory."""
    return name in self._loaded

  def identity(self, name: str) -> str:
    """Returns a text that changes with a part's weights.

    For a part in memory, it identifies the weights that were read.

    Raises:
      ValueError: if there are no such weights.
    """
    if name in self._loaded:
      return self.identities[name]
    return self._identify(name)

  def release(self, name: str) -> None:
    """Frees a part; the next use reads it again.

    Raises:
      ValueError: if there is no such part.
    """
    if name not in self._names:
      raise ValueError(
        f"part is {name!r}, expected one of {', '.join(self._names)}"
      )
    self._loaded.pop(name, None)
