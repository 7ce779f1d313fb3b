"""The interface for programs and notebooks: train."""

import copy
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imagen_jax import build

if TYPE_CHECKING:
  from imagen_jax.training.log import Callback
  from imagen_jax.training.loop import Trained


def train(
  config: Any,
  workdir: str | os.PathLike,
  *,
  overrides: Mapping[str, Any] | None = None,
  callback: "Callback | None" = None,
  allow_config_change: bool = False,
  profile_steps: tuple[int, int] | None = None,
) -> "Trained":
  """Trains a stage, as the command `python -m imagen_jax.train` does.

  Call it again with the same workdir to resume. SIGTERM and Ctrl-C, a
  notebook's button to interrupt too, save the current step and return; after a
  second one nothing more is saved.

  Args:
    config: the name of a shipped config, the path of a config file, or a
      ConfigDict, of one stage.
    workdir: the folder for checkpoints, metrics and sample grids; gs:// works.
    overrides: values by dotted keys of the config, {"train.steps": 100}.
    callback: called as callback(step, metrics) each time metrics are logged,
      with a dict from the names in metrics.jsonl to floats; of many processes,
      in the first.
    allow_config_change: whether to resume a checkpoint of a config that
      computes something else.
    profile_steps: the first and the last step to trace, into workdir/trace.

  Returns:
    The step that the run came to, its workdir, and whether it was interrupted.

  ValueError, in one sentence, for mistakes in any of these, and when training
  cannot go on.
  """
  # Sampling does without what only training needs.
  from imagen_jax.training import loop

  config = _read(config, overrides)
  return loop.train(
    build.run(config),
    os.path.expanduser(os.fspath(workdir)),
    build.as_json(config),
    complete=build.as_json,
    callback=callback,
    allow_config_change=allow_config_change,
    profile_steps=profile_steps,
  )


def _read(config: Any, overrides: Mapping[str, Any] | None) -> Any:
  """Returns the config of a name or path; changes are made in a copy."""
  if isinstance(config, str | os.PathLike):
    from imagen_jax.build.configs import read_config

    config = read_config(os.fspath(config))
  if overrides:
    from imagen_jax.build.configs import override

    config = copy.deepcopy(config)  # references between its values stay
    override(config, overrides)
  return config
