"""Checkpoints of a training run, saved and restored by Orbax."""

import contextlib
import datetime
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from imagen_jax.checkpoints.config_changes import config_changes
from imagen_jax.checkpoints.quiet import quiet_orbax
from imagen_jax.checkpoints.verify import (
  check_allowed,
  checksums,
  crc,
  kinds,
  load,
  read_config,
)
from imagen_jax.files import expand
from imagen_jax.parallel.processes import (
  Failed,
  Meeting,
  raise_together,
  reason,
)

# The first process lists the checkpoints for all.
NAMES = ocp.path.step.standard_name_format(single_host_load_and_broadcast=True)
# How many checkpoints in a row may be removed while they are read.
REPLACED = 30
TRIAL = ".imagen-trial"  # the ending of files that only test a folder


def directory(workdir: str) -> epath.Path:
  """Returns the folder of a run's checkpoints; workdir may be a gs:// path."""
  path = epath.Path(expand(workdir))
  if "://" not in workdir:
    path = path.absolute()
  return path / "checkpoints"


class Checkpoints:
  """Keeps a run's newest `keep` checkpoints and every keep_every-th step's.

  All processes call every method together, except close(). Saves happen in the
  background. A save that fails is logged and does not end the run; earlier
  checkpoints stay.
  """

  def __init__(
    self,
    workdir: str,
    *,
    keep: int,
    keep_every: int | None = None,
    log: Callable[[str], None] = print,
  ):
    self._directory, self._log = directory(workdir), log
    self._saving: int | None = None  # the step in progress
    self._lost = ""  # why the newest state is not saved
    self._meeting = Meeting()
    make = lambda: self._directory.mkdir(parents=True, exist_ok=True)
    try:
      raise_together(make)
      raise_together(self._try_folder)
    except Failed as error:
      raise ValueError(
        f"workdir {workdir} cannot be written: {error}"
      ) from error
    keepers = [policies.LatestN(keep)]
    if keep_every is not None:
      keepers.append(policies.EveryNSteps(keep_every))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(keepers),
      step_name_format=_Names(),
      single_host_load_and_broadcast=True,
      enable_async_checkpointing=True,
      async_options=ocp.AsyncOptions(barrier_sync_fn=self._meeting),
    )
    with contextlib.ExitStack() as stack:
      stack.enter_context(quiet_orbax())
      self._manager = ocp.CheckpointManager(self._directory, options=options)
      self._quiet = stack.pop_all()  # until close(): saves run in threads

  def restore(
    self,
    like: Any,
    config: Mapping[str, Any],
    *,
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    allow_config_change: bool = False,
  ) -> Any | None:
    """Reads the newest state.

    A damaged checkpoint is logged and renamed, and the checkpoint before it is
    read. Remains of interrupted saves are removed once the config is accepted.

    Args:
      like: the state's shapes, dtypes and shardings.
      config: the run's config.
      complete: fills in what a checkpoint's config lacks.
      allow_config_change: accepts a config that computes something else, and
        logs the changes.

    Returns:
      The state, sharded as `like`; None if there is no checkpoint.

    Raises:
      ValueError: no checkpoint can be read; or the newest has other arrays than
        `like`; or its config would compute something else than `config`.
    """
    self._settle()
    damaged = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      path = self._directory / str(step)
      try:
        saved = raise_together(lambda path=path: read_config(path))
        if changes := config_changes(complete(saved), config):
          said = f"checkpoint {path} is of another config: {changes}"
          if not allow_config_change:
            raise ValueError(f"{said} (--allow_config_change resumes with it)")
          self._log(said)
        state = load(path, like)
      except Failed as error:
        check_allowed(path)
        damaged[step] = error
        continue
      self._set_aside(damaged, step)
      self.clean()
      return state
    if damaged:
      raise ValueError(
        f"no checkpoint in {self._directory} can be read, the newest, "
        f"{max(damaged)}, because: {damaged[max(damaged)]}"
      )
    self.clean()
    return None

  def save(self, step: int, state: Any, config: Mapping[str, Any]) -> None:
    """Begins to save a state and its config, in the background."""
    self._settle()
    self._lost = ""
    if step in self._manager.all_steps():
      return
    names, sums = kinds(state), checksums(state)
    arrays = {name: [kind, sums[name]] for name, kind in names.items()}
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      config=ocp.args.JsonSave(config),
      checksums=ocp.args.JsonSave({"arrays": arrays, "config": crc(config)}),
    )
    self._saving = step
    begin = lambda: self._manager.save(step, args=args, force=True)
    try:
      raise_together(self._try_folder)
      raise_together(begin)
    except Failed as error:
      self._fail(error)

  def compile(self, state: Any) -> None:
    """Compiles what a save computes, so that the first one is quick."""
    checksums(state)

  def wait(self) -> None:
    """Waits until the newest state is saved; ValueError if that failed."""
    self._settle()
    if self._lost:
      raise ValueError(self._lost)

  def close(self) -> None:
    """Waits for a save in progress.

    It needs no other process, since one process may end alone, by an error.
    """
    with self._quiet:
      for end in (self._manager.wait_until_finished, self._manager.close):
        try:
          end()
        except Exception as error:
          self._log(self._failed(error))

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def _settle(self) -> None:
    """Waits for the save in progress, and logs if it failed."""
    try:
      raise_together(self._manager.wait_until_finished)
    except Failed as error:
      self._fail(error)
    self._saving = None

  def _fail(self, error: Exception) -> None:
    """Logs a failed save, and makes room for the next."""
    try:  # Orbax may report a missing file where no folder could be made
      raise_together(self._try_folder)
    except Failed as cause:
      error = cause
    self._lost = self._failed(error)
    self._log(self._lost)
    self._saving = None
    with contextlib.suppress(Exception):  # the failures of other arrays
      self._manager.wait_until_finished()
    self._meeting.reset()
    with contextlib.suppress(Exception):  # a store that is out of reach
      raise_together(self.clean)
      self._manager.reload()

  def _failed(self, error: Exception) -> str:
    path = self._directory / str(self._saving or "")
    return f"checkpoint {path} could not be saved: {reason(error)}"

  def _try_folder(self) -> None:
    """Raises if the folder cannot be written; Orbax would wait for minutes."""
    if jax.process_index() == 0:
      # The name cannot be guessed, so that nobody can plant a link there.
      path = self._directory / f"{secrets.token_hex(8)}{TRIAL}"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(bytes(4096))  # a bucket has no folders to test
      path.unlink()

  def clean(self) -> None:
    """Removes remains of interrupted and failed saves, where possible."""
    # In a bucket, a folder without files does not exist.
    if jax.process_index() == 0 and self._directory.exists():
      for path in self._directory.iterdir():
        with contextlib.suppress(Exception):  # stores raise many kinds
          if ocp.path.step.is_path_temporary(path):
            path.rmtree()
          elif path.name.endswith(TRIAL):
            path.unlink()

  def _set_aside(self, damaged: Mapping[int, Exception], used: int) -> None:
    """Renames damaged checkpoints, so that Orbax ignores them.

    Call it after another checkpoint was read. Otherwise a store that is out of
    reach would make all checkpoints look damaged.
    """
    for step, error in damaged.items():
      path = self._directory / str(step)
      name = _rename(path)
      self._log(
        f"checkpoint {path} is damaged ({error}); it is renamed {name}, and "
        f"step {used} taken"
      )
    if damaged:
      self._manager.reload()


def restore_ema(
  workdir: str, like: Any, shardings: Any = None
) -> tuple[int, Any, dict[str, Any]]:
  """Reads the newest averaged weights, also while a run saves there.

  A run that keeps few checkpoints may remove one while it is read. Then the
  checkpoint that replaced it is read.

  Args:
    workdir: the run's folder.
    like: the averaged weights' tree of shapes.
    shardings: the tree of their shardings; None puts them on one device.

  Returns:
    (step, ema, config), with the config that save was given.

  Raises:
    ValueError: there is no checkpoint, or the newest is damaged or has other
      arrays than `like`; it is named.
  """
  for _ in range(REPLACED):
    step, path = newest(workdir)
    try:
      return step, *_read_ema(path, like, shardings)
    except (Failed, ValueError) as error:
      if newest(workdir)[0] != step:
        continue
      if not isinstance(error, Failed):
        raise
      check_allowed(path)
      raise ValueError(
        f"checkpoint {path} cannot be read; if it is damaged, remove it to use "
        f"the one before it ({error})"
      ) from error
  raise ValueError(
    f"{directory(workdir)}: {REPLACED} checkpoints in a row were replaced "
    "while they were read, expected one that stays; raise "
    "train.keep_checkpoints"
  )


def newest(workdir: str) -> tuple[int, epath.Path]:
  """Returns the step and the folder of a run's newest checkpoint.

  Raises:
    ValueError: the folder belongs to no run, or has no complete checkpoint.
  """
  path = directory(workdir)
  if not path.is_dir():
    raise ValueError(f"{workdir} is no training run: it has no checkpoints/")
  steps = [found.step for found in NAMES.find_all(path)]
  if not steps:
    raise ValueError(f"{path} holds no complete checkpoint")
  return max(steps), path / str(max(steps))


def has_checkpoint(workdir: str) -> bool:
  """Returns True for the folder of a run with a complete checkpoint."""
  path = directory(workdir)
  return path.is_dir() and any(True for _ in NAMES.find_all(path))


def check_run(workdir: str) -> None:
  """Checks that a training run has a checkpoint, without reading any.

  Raises:
    ValueError: the folder belongs to no run, or has no complete checkpoint.
  """
  try:
    newest(workdir)
  except OSError as error:
    raise ValueError(f"{workdir} cannot be read: {reason(error)}") from error


def _read_ema(
  path: epath.Path, like: Any, shardings: Any
) -> tuple[Any, dict[str, Any]]:
  """Returns a checkpoint's averaged weights and its config."""
  if shardings is None:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: here, like)
  like = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    like, shardings,
  )  # fmt: skip
  with quiet_orbax():
    config = raise_together(lambda: read_config(path))
    return load(path, {"ema": like}, "ema/")["ema"], config


class _Undated(ocp.path.step.Metadata):
  """A checkpoint whose date file is not read."""

  commit_timestamp = datetime.datetime.fromtimestamp(0, datetime.UTC)


class _Names(ocp.path.step.NameFormat):
  """Orbax's names of checkpoints, read without their dates.

  One damaged date would hide all checkpoints from Orbax.
  """

  single_host_load_and_broadcast = True

  def build_name(self, step: int) -> str:
    """Names the folder of a step."""
    return NAMES.build_name(step)

  def find_all(self, base_path: epath.PathLike) -> Iterator[_Undated]:
    """Yields all checkpoints of a folder, without their dates."""
    return (_Undated(x.step, x.path) for x in NAMES.find_all(base_path))

  def find_step(self, base_path: epath.PathLike, step: int) -> Any:
    """Finds the checkpoint of a step."""
    return NAMES.find_step(base_path, step)


def _rename(path: epath.Path) -> str:
  """Renames 9 to 9.damaged, 9.damaged-2 and so on; returns the new name."""

  def free() -> epath.Path:
    name, count = f"{path.name}.damaged", 1
    while path.with_name(name).exists():
      count += 1
      name = f"{path.name}.damaged-{count}"
    return path.with_name(name)

  try:
    aside = raise_together(free)  # before the first process takes the name
    raise_together(lambda: jax.process_index() or path.rename(aside))
  except Failed as error:
    raise ValueError(
      f"checkpoint {path} is damaged and cannot be renamed: {error}"
    ) from error
  return aside.name
