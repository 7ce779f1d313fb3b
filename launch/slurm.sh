#!/usr/bin/env bash
# Submits a job on the GPUs of a SLURM cluster, one process per GPU:
#
#   launch/slurm.sh [FLAGS] -- COMMAND
#
# COMMAND is what one types on a single machine. It runs in this checkout, which
# every node must see, as must the folder it writes to:
#   python -m imagen_jax.train --config=configs/x.py --workdir=/shared/runs/x
#
# A job that is preempted goes back into the queue, and so does one at the end
# of its --time, after a SIGTERM to its processes; train then goes on from its
# newest checkpoint. To resume after a failure, submit again.
#
#   --name=imagen_jax          the job's name
#   --nodes=1
#   --gpus_per_node=8
#   --cpus_per_gpu=8           to read data with; SLURM's own default is one
#   --time=, --partition=, --account=   as of sbatch; the cluster's defaults
#   --env=gpu                  which file of launch/env/
#   --extra=FLAG               for sbatch, e.g. --extra=--exclusive; repeatable
#   --dry_run                  prints the command and does not submit
#
# `squeue --me` tells its state, slurm-JOB.log is its log, `scancel JOB` ends it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"
cd "$root"

name=imagen_jax
nodes=1
gpus_per_node=8
cpus_per_gpu=8
time=
partition=
account=
env=gpu

parse "name nodes gpus_per_node cpus_per_gpu time partition account env" "" "$@"
need_command
need name env
need_count nodes gpus_per_node cpus_per_gpu
need_env "$env"

words=(sbatch "--job-name=$name" "--nodes=$nodes"
  "--ntasks-per-node=$gpus_per_node" "--gpus-per-node=$gpus_per_node"
  "--cpus-per-task=$cpus_per_gpu")
[ -z "$time" ] || words+=("--time=$time")
[ -z "$partition" ] || words+=("--partition=$partition")
[ -z "$account" ] || words+=("--account=$account")
run "${words[@]}" ${extra[@]+"${extra[@]}"} \
  launch/slurm.sbatch "$env" "${COMMAND[@]}"
