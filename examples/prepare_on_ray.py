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

import sys

import ray
from tqdm import tqdm

from imagen_jax import prepare


@ray.remote(max_retries=-1)
def write_shard(work: prepare.Preparation, i: int) -> None:
  """Writes a shard, in a process of Ray."""
  work.write_shard(i)


def write_all(work: prepare.Preparation) -> None:
  """Writes all shards that are not finished, one task for each."""
  shared = ray.put(work)  # sent to each host once
  left = [write_shard.remote(shared, i) for i in range(work.count)]
  with tqdm(total=work.count, unit="shard") as progress:
    while left:
      (done,), left = ray.wait(left)
      ray.get(done)  # raises the error of a task
      progress.update()


def main() -> None:
  """Writes shards by tasks of Ray, then the metadata."""
  work = prepare.open_preparation(sys.argv[1:])
  ray.init(log_to_driver=False, logging_level="ERROR")
  try:
    with work.holding(alone=False):
      write_all(work)
    print(*work.finish(), sep="\n")
  except ray.exceptions.RayTaskError as error:
    raise error.cause from error
  finally:
    ray.shutdown()


if __name__ == "__main__":
  try:
    main()
  except ValueError as error:
    sys.exit(f"error: {error}")
