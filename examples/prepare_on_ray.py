r"""Prepares a dataset of your own images on a cluster of Ray.

  pip install 'imagen_jax[train]' 'ray==2.60.*'
  python examples/prepare_on_ray.py --source=SOURCE --output=DATA

The flags are those of imagen_jax.prepare, and so are the bytes that it writes.
One task of Ray writes one shard. Ray repeats a task whose worker or host is
lost, as often as that happens. RAY_ADDRESS names the cluster; without it, Ray
starts on this machine. All machines need imagen_jax, and must reach SOURCE and
DATA under the same path, as on gs:// or a shared disk. Run the same command
again to resume.
"""

import ray
from absl import flags
from etils import epath

from imagen_jax import prepare
from imagen_jax.cli import program
from imagen_jax.data.prepare import finish, shards, sources
from imagen_jax.progress import Progress, print_line


@ray.remote(max_retries=-1)
def write_shard(
  source: sources.Source, plan: shards.Plan, output: epath.Path, i: int
) -> None:
  """Writes a shard, in a process of Ray."""
  shards.write_shard(source, plan, output, i)


def write_all(
  source: sources.Source, plan: shards.Plan, output: epath.Path
) -> None:
  """Writes all shards that are not finished, one task for each."""
  common = [ray.put(source), ray.put(plan), output]  # sent to a host once
  left = [write_shard.remote(*common, i) for i in range(plan.count)]
  with Progress("prepare", plan.count) as progress:
    progress.start(0)
    while left:
      (done,), left = ray.wait(left)
      ray.get(done)  # raises the error of a task
      progress.show(plan.count - len(left))


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of prepare, without those that divide the work."""
  prepare.define_flags(values)
  for name in ("shard", "finish", "threads"):
    delattr(values, name)


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  """Writes shards by tasks of Ray, then the metadata."""
  source, plan, output = prepare.open_plan(args)
  ray.init(log_to_driver=False, logging_level="ERROR")
  try:
    with shards.holding(output, alone=False):
      write_all(source, plan, output)
    with shards.holding(output, alone=True):
      for line in finish.finish(plan, output):
        print_line(line)
  except ray.exceptions.RayTaskError as error:
    raise error.cause from error
  finally:
    ray.shutdown()


if __name__ == "__main__":
  program.run(main)
