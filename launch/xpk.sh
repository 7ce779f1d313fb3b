#!/usr/bin/env bash
# A workload on TPUs of a GKE cluster, by xpk (`pip install xpk`):
#
#   launch/xpk.sh VERB --name=NAME --cluster=CLUSTER [FLAGS] [-- COMMAND]
#
#   image   builds launch/Dockerfile as --image and pushes it; again after a
#           change
#   start   runs COMMAND on every host of every slice. What is preempted (train
#           then ends with 75), has lost a host (76), is killed or ends with
#           exit code 127 or above starts again by itself, up to
#           --max_restarts times; train goes on from its newest checkpoint
#   logs    follows the log of host --worker of each slice, with kubectl
#   status  the workload's state
#   resume  deletes what is left of the workload, then starts it again
#   delete  deletes it
#
# COMMAND is what one types on a single machine, and runs in the image with the
# flags of launch/env/ for the TPU's generation:
#   python -m imagen_jax.train --config=configs/x.py --workdir=gs://BUCKET/RUN
#
# Flags, or else these environment variables:
#   --name=                        lower-case letters, digits and hyphens
#   --cluster=                     CLUSTER, one made by `xpk cluster create`
#   --zone=, --project=            ZONE, PROJECT_ID; else gcloud's defaults
#   --type=                        ACCELERATOR_TYPE, such as v4-32, v5p-128,
#                                  v5litepod-16 or v5e-16, v6e-256, tpu7x-2x2x4
#   --num_slices=1                 how many of these
#   --image=                       IMAGE, as REGION-docker.pkg.dev/PROJECT/X/Y
#   --max_restarts=10
#   --worker=0
#   --extra=FLAG                   for xpk workload create, such as
#                                  --extra=--spot; repeatable
#   --dry_run                      prints the commands and runs none
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"
cd "$root"

VERBS="image, start, logs, status, resume or delete"
name=
cluster=${CLUSTER-}
zone=${ZONE-}
project=${PROJECT_ID-}
type=${ACCELERATOR_TYPE-}
num_slices=1
image=${IMAGE-}
max_restarts=10
worker=0

# workload VERB WORD...: xpk workload, with the flags of where.
workload() {
  need name cluster
  local words=(xpk workload "$@" "--cluster=$cluster")
  [ -z "$zone" ] || words+=("--zone=$zone")
  [ -z "$project" ] || words+=("--project=$project")
  run "${words[@]}"
}

build_image() {
  need image
  run docker build --platform=linux/amd64 --file=launch/Dockerfile \
    "--tag=$image" .
  run docker push "$image"
}

# exec, so that the SIGTERM before an eviction reaches COMMAND itself, which has
# two minutes to end.
start() {
  workload create "--workload=$name" "--tpu-type=$(platform_type "$type")" \
    "--num-slices=$num_slices" "--docker-image=$image" \
    "--max-restarts=$max_restarts" --restart-on-exit-codes=75,76 \
    --termination-grace-period-seconds=120 \
    "--command=. launch/env/$generation.sh && exec $(quote "${COMMAND[@]}")" \
    ${extra[@]+"${extra[@]}"}
}

check_start() {
  need type image
  need_count num_slices
  need_command
  generation=$(generation_of "$type")
  [ -n "$generation" ] || fail "type '$type' is unknown, expected v4-N, v5p-N, \
v5litepod-N, v6e-N or tpu7x-N, with a topology such as 4x4 for N or a number."
  case "${COMMAND[*]}" in
    *$'\n'*) fail "the command has a line break, which xpk cannot pass on." ;;
  esac
}

verb=${1-}
case $verb in
  image | start | logs | status | resume | delete) shift ;;
  '') fail "a verb is needed: $VERBS." ;;
  -*) ;; # such as --help
  *) fail "verb '$verb' is unknown, expected $VERBS." ;;
esac
parse "name cluster zone project type num_slices image max_restarts worker" \
  "" "$@"
case $verb in
  image) build_image ;;
  start | resume)
    check_start
    if [ "$verb" = resume ]; then
      workload delete "--workload=$name" ||
        echo "xpk.sh: nothing was deleted; starting" >&2
    fi
    start
    ;;
  logs)
    need name
    labels=jobset.sigs.k8s.io/jobset-name=$name
    labels+=,batch.kubernetes.io/job-completion-index=$worker
    run kubectl logs --follow --prefix --all-containers --tail=1000 \
      --max-log-requests=100 "--selector=$labels"
    ;;
  status) workload list "--filter-by-job=$name" ;;
  delete) workload delete "--workload=$name" ;;
  *) fail "a verb is needed: $VERBS." ;;
esac
