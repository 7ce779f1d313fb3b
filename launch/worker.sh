#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each worker of a TPU, in its copy of the
# repository:
#
#   launch/worker.sh setup
#   launch/worker.sh start --env=GENERATION -- COMMAND
#   launch/worker.sh status | logs [--lines=1000] | stop [--grace=120]
#
# start runs COMMAND with .venv and the flags of launch/env/GENERATION.sh. It
# outlives the connection and writes to ~/imagen_jax.log. stop asks it to end
# (SIGTERM), and after --grace seconds makes it. --dry_run prints and runs none.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"
cd "$root"

VERBS="setup, start, status, logs or stop"
log=$HOME/imagen_jax.log
pid_file=$HOME/imagen_jax.pid
env=
grace=120
lines=1000

setup() {
  # The runtimes' Ubuntu 22.04 has Python 3.10, which JAX left behind. A new VM
  # may still be busy with upgrades of its own, hence the waiting for locks.
  if ! python3.11 -c 'import ensurepip, venv' 2>/dev/null; then
    local apt=(sudo env DEBIAN_FRONTEND=noninteractive apt-get -o
      DPkg::Lock::Timeout=600 -qq)
    run sudo add-apt-repository --yes ppa:deadsnakes/ppa
    run "${apt[@]}" update
    run "${apt[@]}" install python3.11 python3.11-venv
  fi
  run launch/environment.sh
  run .venv/bin/python -m pip --disable-pip-version-check install -qq \
    --no-build-isolation -c requirements-lock.txt -e '.[tpu]'
}

# Whether what start began has not ended. After a reboot its number may be of
# another process. ps cuts lines to COLUMNS where that is exported; -ww doesn't.
running() {
  pid=$(cat "$pid_file" 2>/dev/null) &&
    [[ $(ps -ww -o args= -p "$pid" 2>/dev/null) == *imagen_jax_run* ]]
}

start() {
  need_command
  need env
  need_env "$env"
  if [ -n "$dry_run" ]; then
    printf '%s\n' ". launch/env/$env.sh"
    run "${COMMAND[@]}"
    return
  fi
  running && fail "a run is under way (process $pid), expected none; see stop."
  # shellcheck source=launch/env/v5p.sh
  . "launch/env/$env.sh"
  export PATH=$root/.venv/bin:$PATH PYTHONUNBUFFERED=1
  printf '%s: %s\n' "$(date)" "$(quote "${COMMAND[@]}")" >>"$log"
  # This shell, in a group of its own, waits to write how COMMAND ended.
  # shellcheck disable=SC2016 # expanded by that shell
  setsid bash -c 'trap : TERM
    "$@"
    code=$?
    printf "%s: ended with exit code %s\n" "$(date)" "$code"' \
    imagen_jax_run "${COMMAND[@]}" >>"$log" 2>&1 </dev/null &
  echo $! >"$pid_file"
  echo "$(hostname): started process $!"
}

status() {
  if running; then
    echo "$(hostname): running, process $pid; $(tail -n 1 "$log")"
  else
    echo "$(hostname): not running; $(tail -n 1 "$log" 2>/dev/null)"
  fi
}

stop() {
  running || return 0
  # Not the whole group: workers that read data must live while it saves.
  pkill -TERM -P "$pid" || true
  local ticks=$((grace * 5))
  while running && [ $((ticks--)) -gt 0 ]; do sleep 0.2; done
  if running; then
    echo "$(hostname): still running after $grace s; killed"
  fi
  kill -KILL -- "-$pid" 2>/dev/null || true # with what it left behind
}

verb=${1-}
case $verb in
  setup | start | status | logs | stop) shift ;;
  '') fail "a verb is needed: $VERBS." ;;
  -*) ;; # such as --help
  *) fail "verb '$verb' is unknown, expected $VERBS." ;;
esac
parse "env grace lines" "" "$@"
case $verb in
  setup) setup ;;
  start) start ;;
  status) status ;;
  logs) run tail -n "$lines" -F "$log" ;;
  stop)
    need_count grace
    if [ -n "$dry_run" ]; then
      echo "kill -TERM \$(pgrep -P \$(cat $(quote "$pid_file")))"
    else
      stop
    fi
    ;;
  *) fail "a verb is needed: $VERBS." ;;
esac
