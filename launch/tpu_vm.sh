#!/usr/bin/env bash
# A Cloud TPU VM, one host or all hosts of a pod slice, from first to last:
#
#   launch/tpu_vm.sh VERB --name=NAME --zone=ZONE [FLAGS] [-- COMMAND]
#
#   create  asks for the TPU; with --queued it waits in line as a queued
#           resource of the same name
#   setup   copies this checkout to every worker and installs it there; again
#           after a change
#   start   runs COMMAND on every worker, detached from this machine
#   logs    follows the log of --worker; Ctrl-C ends the following only
#   status  the TPU's state and what every worker does; with --queued, the
#           queued resource's state
#   stop    asks the run to end (SIGTERM), and after 120 s makes it
#   resume  stop, then start: train goes on from its newest checkpoint. If the
#           TPU itself was lost (preempted, SUSPENDED): delete, create (both
#           with --queued if it was), setup, resume
#   delete  gives the TPU back; gcloud asks first
#
# COMMAND is what one types on a single machine, and runs in the checkout, with
# its environment and the flags of launch/env/ for the TPU's generation:
#   python -m imagen_jax.train --config=configs/x.py --workdir=gs://BUCKET/RUN
#
# Flags, or else these environment variables:
#   --name=, --zone=, --project=   TPU_NAME, ZONE, PROJECT_ID; the last two are
#                                  gcloud's defaults otherwise
#   --type=                        ACCELERATOR_TYPE, such as v4-32, v5p-128,
#                                  v5litepod-16 (or v5e-16), v6e-64
#   --runtime_version=             RUNTIME_VERSION; known for these types
#   --env=                         which file of launch/env/; known likewise
#   --worker=0                     whose log; a number or all
#   --queued, --spot               a queued resource; cheaper, but can be lost
#   --extra=FLAG                   for gcloud, such as --extra=--reserved or
#                                  --extra=--internal-ip; repeatable
#   --dry_run                      prints the commands and runs none
#
# For more than one worker, `ssh-add ~/.ssh/google_compute_engine` first.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"
cd "$root"

VERBS="create, setup, start, logs, status, stop, resume or delete"
name=${TPU_NAME-}
zone=${ZONE-}
project=${PROJECT_ID-}
type=${ACCELERATOR_TYPE-}
runtime_version=${RUNTIME_VERSION-}
env=
worker=0
queued=
spot=

# Whatever is not given is looked up by the type's generation. Google changes
# runtime versions: `gcloud compute tpus tpu-vm versions list --zone=ZONE`.
look_up() {
  local generation runtime=
  need type
  generation=$(generation_of "$type")
  case $generation in
    v4) runtime=tpu-ubuntu2204-base ;;
    v5e) runtime=v2-alpha-tpuv5-lite ;;
    v5p) runtime=v2-alpha-tpuv5 ;;
    v6e) runtime=v2-alpha-tpuv6e ;;
    tpu7x)
      fail "type '$type' is not offered as a TPU VM, only by launch/xpk.sh."
      ;;
  esac
  : "${runtime_version:=$runtime}" "${env:=$generation}"
  if [ -z "$runtime_version" ] || [ -z "$env" ]; then
    fail "type '$type' is unknown, expected v4-N, v5p-N, v5litepod-N or v6e-N, \
or --runtime_version and --env with it."
  fi
  need_env "$env"
  type=$(platform_type "$type")
}

# tpus WORD...: gcloud compute tpus, with the flags of where.
tpus() {
  local words=(gcloud compute tpus "$@")
  [ -z "$zone" ] || words+=("--zone=$zone")
  [ -z "$project" ] || words+=("--project=$project")
  run "${words[@]}" ${extra[@]+"${extra[@]}"}
}

# on WORKER SHELL_COMMAND
on() {
  tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}

create() {
  look_up
  local words=("--accelerator-type=$type")
  [ -z "$spot" ] || words+=(--spot)
  if [ -n "$queued" ]; then
    tpus queued-resources create "$name" "--node-id=$name" "${words[@]}" \
      "--runtime-version=$runtime_version"
  else
    tpus tpu-vm create "$name" "${words[@]}" "--version=$runtime_version"
  fi
}

setup() {
  local archive=build/$name.tgz
  run mkdir -p build
  run tar -czf "$archive" --exclude=.git --exclude=.venv --exclude=./build \
    --exclude=./runs --exclude=./samples --exclude=__pycache__ .
  tpus tpu-vm scp "$archive" "$name:imagen_jax.tgz" --worker=all
  # Folders that hold code only are made anew, so that what is gone here is
  # gone there.
  on all "mkdir -p imagen_jax && cd imagen_jax && \
rm -rf imagen_jax configs launch && tar -xzf ../imagen_jax.tgz && \
launch/worker.sh setup"
}

start() {
  look_up
  need_command
  on all "imagen_jax/launch/worker.sh start --env=$env -- \
$(quote "${COMMAND[@]}")"
}

verb=${1-}
case $verb in
  create | setup | start | logs | status | stop | resume | delete) shift ;;
  '') fail "a verb is needed: $VERBS." ;;
  -*) ;; # such as --help
  *) fail "verb '$verb' is unknown, expected $VERBS." ;;
esac
parse "name zone project type runtime_version env worker" "queued spot" "$@"
need name
case $verb in
  create) create ;;
  setup) setup ;;
  start) start ;;
  logs)
    case $worker in
      '' | *[!0-9]*) [ "$worker" = all ] ||
        fail "--worker is '$worker', expected a worker's number or all." ;;
    esac
    on "$worker" "imagen_jax/launch/worker.sh logs"
    ;;
  status)
    if [ -n "$queued" ]; then
      tpus queued-resources describe "$name" "--format=value(state.state)"
    else
      tpus tpu-vm describe "$name" "--format=value(state)"
      on all "imagen_jax/launch/worker.sh status"
    fi
    ;;
  stop) on all "imagen_jax/launch/worker.sh stop" ;;
  resume)
    look_up
    need_command
    on all "imagen_jax/launch/worker.sh stop"
    start
    ;;
  delete)
    if [ -n "$queued" ]; then
      tpus queued-resources delete "$name" --force
    else
      tpus tpu-vm delete "$name"
    fi
    ;;
  *) fail "a verb is needed: $VERBS." ;;
esac
