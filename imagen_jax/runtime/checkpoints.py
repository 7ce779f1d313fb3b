"""Checkpoints of a training run, by Orbax."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies


def directory(workdir: str) -> pathlib.Path:
  """Where a run's checkpoints lie."""
  return pathlib.Path(workdir).expanduser().absolute() / "checkpoints"


def open_checkpoints(workdir: str, *, keep: int) -> ocp.CheckpointManager:
  """The checkpoints of a run, the last `keep` of them; made if there are none.

  Saves happen in the background; close() waits for the last.
  """
  path = directory(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(
      f"workdir {workdir} cannot be written: {error.strerror}"
    ) from error
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policies.LatestN(keep),
    cleanup_tmp_directories=True,
    enable_async_checkpointing=True,
  )
  return ocp.CheckpointManager(path, options=options)


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: Any,
  config: Mapping[str, Any],
) -> None:
  """Saves state and the config it was made with."""
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config)
    ),
    force=True,
  )


def restore(manager: ocp.CheckpointManager, like: Any) -> Any | None:
  """The newest state, with the shardings of `like`; None if there is none."""
  step = manager.latest_step()
  if step is None:
    return None
  args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
  return _checked(lambda: manager.restore(step, args=args), manager, step)


def restore_ema(workdir: str, like: Any) -> tuple[int, Any]:
  """(step, ema) of the newest checkpoint; `like` is the ema's tree of shapes.

  ValueError, naming the directory, if there is no readable checkpoint.
  """
  path = directory(workdir)
  if not path.is_dir():
    raise ValueError(f"{workdir} is no training run: it has no checkpoints/")
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like
  )
  item = {"ema": like}
  args = ocp.args.PyTreeRestore(
    item=item,
    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
    partial_restore=True,
  )
  options = ocp.CheckpointManagerOptions(read_only=True)
  with ocp.CheckpointManager(path, options=options) as manager:
    step = manager.latest_step()
    if step is None:
      raise ValueError(f"{path} holds no complete checkpoint")
    args = ocp.args.Composite(state=args)
    restored = _checked(lambda: manager.restore(step, args=args), manager, step)
  ema = restored["ema"]
  if any(not isinstance(x, jax.Array) for x in jax.tree.leaves(ema)):
    raise ValueError(f"checkpoint {path / str(step)} lacks weights of the net")
  return step, ema


def _checked(read, manager: ocp.CheckpointManager, step: int) -> Any:
  """The state that read() gives; any failure becomes one sentence."""
  try:
    return read()["state"]
  except Exception as error:  # Orbax and its stores raise many kinds.
    where = pathlib.Path(manager.directory) / str(step)
    reason = " ".join(str(error).split())[:200]
    raise ValueError(
      f"checkpoint {where} is damaged or of another config: {reason}"
    ) from error
