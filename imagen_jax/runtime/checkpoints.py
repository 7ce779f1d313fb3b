"""Checkpoints of a training run, by Orbax."""

import asyncio
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
  """The newest state, with the shardings of `like`; None if there is none.

  ValueError, naming the checkpoint, if it is damaged or its arrays are not
  those of `like`.
  """
  step = manager.latest_step()
  if step is None:
    return None
  _check_arrays(manager.directory / str(step), like)
  args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
  return _read(manager, step, args)["state"]


def restore_ema(workdir: str, like: Any) -> tuple[int, Any, dict[str, Any]]:
  """(step, ema, config) of the newest checkpoint.

  `like` is the ema's tree of shapes, config what save was given. ValueError as
  restore, and if there is no checkpoint.
  """
  path = directory(workdir)
  if not path.is_dir():
    raise ValueError(f"{workdir} is no training run: it has no checkpoints/")
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like
  )
  item = {"ema": like}
  args = ocp.args.Composite(
    state=ocp.args.PyTreeRestore(
      item=item,
      restore_args=ocp.checkpoint_utils.construct_restore_args(item),
      partial_restore=True,
    ),
    config=ocp.args.JsonRestore(),
  )
  options = ocp.CheckpointManagerOptions(create=False)
  with ocp.CheckpointManager(path, options=options) as manager:
    step = manager.latest_step()
    if step is None:
      raise ValueError(f"{path} holds no complete checkpoint")
    _check_arrays(path / str(step), item, "ema/")
    found = _read(manager, step, args)
    return step, found["state"]["ema"], found["config"]


class _Loop(asyncio.SelectorEventLoop):
  """An event loop that ends what it began before it is closed.

  When one read fails, Orbax closes the loop on all others. Each would print a
  traceback when it is done, in a thread of its own, or collected.
  """

  def close(self) -> None:
    while not self.is_closed() and (rest := asyncio.all_tasks(self)):
      self.run_until_complete(_ended(rest))
    super().close()


async def _ended(tasks: set[asyncio.Task]) -> None:
  await asyncio.gather(*tasks, return_exceptions=True)


class _Loops(asyncio.DefaultEventLoopPolicy):
  _loop_factory = _Loop


def _read(manager: ocp.CheckpointManager, step: int, args: Any) -> Any:
  """What args ask for of a step; any failure becomes one sentence."""
  policy = asyncio.get_event_loop_policy()
  asyncio.set_event_loop_policy(_Loops())
  try:
    return manager.restore(step, args=args)
  except Exception as error:  # Orbax and its stores raise many kinds.
    raise _unreadable(manager.directory / str(step), error) from error
  finally:
    asyncio.set_event_loop_policy(policy)


def _check_arrays(path: pathlib.Path, like: Any, prefix: str = "") -> None:
  """ValueError unless a checkpoint has the arrays of like, by name and shape.

  Those whose names begin with the prefix, that is; the rest may be others.
  """
  try:
    stored = _shapes(
      ocp.PyTreeCheckpointHandler().metadata(path / "state").tree
    )
  except Exception as error:
    raise _unreadable(path, error) from error
  wanted = _shapes(like)
  for name in sorted(wanted.keys() ^ stored.keys()):
    if name in wanted or name.startswith(prefix):
      lack = "has no" if name in wanted else "has an unknown"
      raise ValueError(f"checkpoint {path} {lack} array {name}")
  for name, shape in wanted.items():
    if stored[name] != shape:
      raise ValueError(
        f"checkpoint {path} has {name} of shape {stored[name]}, expected "
        f"{shape}"
      )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Shapes of a tree's arrays by path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _unreadable(path: pathlib.Path, error: Exception) -> ValueError:
  reason = str(error).strip().split("\n")[0][:200]
  return ValueError(
    f"checkpoint {path} cannot be read; if it is damaged, remove it to use the "
    f"one before it ({type(error).__name__}: {reason})"
  )
