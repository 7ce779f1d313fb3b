#!/usr/bin/env bash
# Several processes on this machine that form one JAX job, to try what runs on
# many hosts:
#
#   launch/local.sh COUNT [FLAGS] -- COMMAND
#
#   JAX_PLATFORMS=cpu launch/local.sh 2 -- \
#     python -m imagen_jax.train --config=configs/shapes16.py --workdir=DIR
#
# Each runs COMMAND in this folder, with .venv's python, and finds the others by
# JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. The coordinator
# listens on localhost only. Their lines are shown behind their numbers. When one fails the others are ended, and its exit
# code is this script's; Ctrl-C ends all (twice: at once).
#
#   --restarts=3   starts all again when one fails, so often at most; not one
#                  that was asked to end, by a signal or with exit code 75
#   --env=NAME     with the flags of launch/env/NAME.sh
#   --grace=10     seconds to end by oneself (SIGTERM) before being killed
#   --port=        of the coordinator; a free one otherwise
#   --dry_run      prints the commands and runs none
#
# Machines with GPUs or TPUs need one process for all of them: COUNT is 1.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

count=${1-}
grace=10
restarts=
port=
env=
pids=()    # of the processes; empty is one that has ended
readers=() # of what shows their lines
failed=    # the number of the one that failed first
code=0     # its exit code, or that of an interruption
interrupts=0
restarted=0

exec 3>&2 # errors, while 2 is closed to what bash tells of ended jobs

say() {
  echo "launch/local.sh: $1" >&3
}

free_port() {
  python3 -c 'import socket
with socket.socket() as s:
  s.bind(("localhost", 0))
  print(s.getsockname()[1])'
}

variables() { # NUMBER
  # It asks nobody who they are: only this machine may reach it.
  printf '%s\n' "JAX_COORDINATOR_ADDRESS=localhost:$port" \
    "JAX_COORDINATOR_BIND_ADDRESS=localhost:$port" \
    "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$1"
}

# Lines behind a number. What ends the processes must not end this before.
show() { # NUMBER
  trap '' INT TERM HUP
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

start() { # NUMBER
  # Both ends are opened here, where neither can wait for the other in vain.
  rm -f "$pipes/$1"
  mkfifo "$pipes/$1"
  exec 4<>"$pipes/$1"
  exec 5<"$pipes/$1"
  exec 6>"$pipes/$1"
  exec 4>&-
  show "$1" <&5 6>&- &
  readers+=($!)
  # In a group of its own: Ctrl-C is for this script to pass on, and what a
  # process leaves behind can be found.
  set -m
  # shellcheck disable=SC2046 # no spaces in these
  (exec env $(variables "$1") "${COMMAND[@]}") \
    </dev/null >&6 2>&1 3>&- 5>&- 6>&- &
  pids+=($!)
  set +m
  exec 5>&- 6>&-
}

# Notes who has ended; true while somebody has not.
running() {
  local i status left=1
  for i in "${!pids[@]}"; do
    [ -n "${pids[i]}" ] || continue
    if kill -0 "${pids[i]}" 2>/dev/null; then
      left=0
      continue
    fi
    status=0
    wait "${pids[i]}" 2>/dev/null || status=$?
    pids[i]=
    if [ "$status" -ne 0 ] && [ "$code" -eq 0 ]; then
      failed=$i
      code=$status
    fi
  done
  return $left
}

# Asks those that still run to end, and after --grace seconds makes them.
end_all() {
  local pid ticks=$((grace * 5)) before=$interrupts
  for pid in "${pids[@]}"; do
    # Not its group: workers that read data must live while it saves.
    [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null || true
  done
  while running && [ $((ticks--)) -gt 0 ] && [ "$interrupts" = "$before" ]; do
    sleep 0.2 || true
  done
  for pid in "${pids[@]}"; do
    [ -z "$pid" ] || kill -KILL -- "-$pid" 2>/dev/null || true
  done
  while running; do sleep 0.1 || true; done
}

# Starts all and waits until they have ended.
run_all() {
  local i pid groups
  pids=() readers=()
  for ((i = 0; i < count; i++)); do start "$i"; done
  groups=("${pids[@]}")
  while running && [ "$code" -eq 0 ]; do sleep 0.2 || true; done
  if [ "$code" -ne 0 ]; then
    [ -z "$failed" ] ||
      say "process $failed ended with exit code $code, ending the others."
    end_all
  fi
  for pid in "${groups[@]}"; do # what ended processes left running
    kill -KILL -- "-$pid" 2>/dev/null || true
  done
  wait "${readers[@]}" || true
}

# Whether to start them again: one failed, and nobody asked them to end.
again() {
  [ -n "$failed" ] && [ "$code" -ne 75 ] && [ "$interrupts" -eq 0 ] &&
    [ "$restarted" -lt "${restarts:-0}" ]
}

case $count in
  --help | -h) parse "" "" "$@" ;;
esac
is_count "$count" ||
  fail "the first argument is '$count', expected how many processes to start."
shift
parse "grace restarts port env" "" "$@"
need_command
need_count grace
[ -z "$restarts" ] || need_count restarts
if [ -d "$root/.venv/bin" ]; then PATH=$root/.venv/bin:$PATH; fi
given_port=$port
: "${port:=$(free_port)}"
need_count port
if [ -n "$env" ]; then
  need_env "$env"
  # shellcheck source=launch/env/gpu.sh
  . "$root/launch/env/$env.sh"
fi

if [ -n "$dry_run" ]; then
  [ -z "$env" ] || run . "$root/launch/env/$env.sh"
  for ((i = 0; i < count; i++)); do
    # shellcheck disable=SC2046 # no spaces in these
    run env $(variables "$i") "${COMMAND[@]}"
  done
  exit
fi

pipes=$(mktemp -d)
trap 'rm -rf "$pipes"' EXIT
trap 'code=130; interrupts=$((interrupts + 1))' INT
trap 'code=143; interrupts=$((interrupts + 1))' TERM
trap 'code=129; interrupts=$((interrupts + 1))' HUP
exec 2>/dev/null
run_all
while again; do
  say "starting all again, restart $((++restarted)) of $restarts."
  failed=''
  code=0
  port=${given_port:-$(free_port)}
  run_all
done
[ -z "$failed" ] || say "process $failed was first to fail, exit code $code."
exit "$code"
