#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each worker of a TPU, in the folder that it has
# copied there:
#
#   launch/worker.sh setup
#   launch/worker.sh claim [--replace]
#   launch/worker.sh start --env=GENERATION [--secrets] -- COMMAND
#   launch/worker.sh status | logs [--lines=1000] | stop [--grace=120]
#
# claim is for the first worker: of several starts at once one gets it, for two
# minutes or until it starts. With --replace a run may be under way. start runs
# COMMAND with .venv and the flags of launch/env/GENERATION.sh. It outlives the
# connection and writes to ~/imagen_jax.log. --secrets exports the lines
# NAME=VALUE of ~/.imagen_jax.env first; start removes that file. stop asks the
# run to end (SIGTERM), and after --grace seconds makes it. --dry_run prints and
# runs none.
set -euo pipefail
root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
cd "$root"

VERBS="setup, claim, start, status, logs or stop"
log=$HOME/imagen_jax.log
pid_file=$HOME/imagen_jax.pid
lock=$HOME/imagen_jax.lock   # held by a run as long as it lives; says whose
claim=$HOME/imagen_jax.claim # who starts next
code_file=$HOME/imagen_jax.code # how the last run ended, unless it was killed
secrets_file=$HOME/.imagen_jax.env
env=
grace=120
lines=1000
dry_run=
replace=
secrets=
COMMAND=() # what follows --

# fail SENTENCE: says it and exits.
fail() {
  echo "launch/worker.sh: $1" >&2
  exit 2
}

# quote WORD...: the words on one line, as a shell would read them again.
quote() {
  local word line="" mark="'" inside="'\\''"
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//$mark/$inside}'" ;;
    esac
    line="$line $word"
  done
  printf '%s' "${line# }"
}

# run WORD...: runs a command and shows it, or with --dry_run shows it only.
run() {
  if [ -n "$dry_run" ]; then
    printf '%s\n' "$(quote "$@")"
  else
    printf '+ %s\n' "$(quote "$@")" >&2
    "$@"
  fi
}

# parse ARGUMENT...: sets the variables above.
parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h)
        sed -e '1d;/^[^#]/,$d' -e 's/^# \{0,1\}//' "$root/launch/worker.sh"
        exit
        ;;
      --)
        shift
        COMMAND=("$@")
        return
        ;;
      --env=*) env=${1#*=} ;;
      --grace=*) grace=${1#*=} ;;
      --lines=*) lines=${1#*=} ;;
      --env | --grace | --lines)
        fail "flag '$1' has no value, expected $1=VALUE."
        ;;
      --dry_run) dry_run=1 ;;
      --replace) replace=1 ;;
      --secrets) secrets=1 ;;
      -*) fail "flag '$1' is unknown, expected one of those in --help." ;;
      *)
        fail "argument '$1' is unexpected, expected flags, then -- COMMAND."
        ;;
    esac
    shift
  done
}

# need_count NAME...: each flag is a number of at least 1.
need_count() {
  local name
  for name; do
    case ${!name} in
      '' | 0* | *[!0-9]*)
        fail "--$name is '${!name}', expected a number of at least 1."
        ;;
    esac
  done
}

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
  local pip=(.venv/bin/python -m pip --disable-pip-version-check install -qq)
  run "${pip[@]}" -c requirements-lock.txt 'jax[tpu]'
  # Its version may be the one that is installed, though its content is not.
  run "${pip[@]}" --no-deps --force-reinstall ./imagen_jax-*.whl
}

# Whether what start began has not ended. After a reboot its number may be of
# another process. ps cuts lines to COLUMNS where that is exported; -ww doesn't.
running() {
  pid=$(cat "$pid_file" 2>/dev/null) &&
    [[ $(ps -ww -o args= -p "$pid" 2>/dev/null) == *imagen_jax_run* ]]
}

# me: who starts, and since when.
me() {
  local from=${SSH_CLIENT-}
  printf '%s%s, since %s' "$(id -un)" "${from:+ from ${from%% *}}" "$(date)"
}

# refuse_second: says whose run is under way.
refuse_second() {
  fail "a run is under way ($(cat "$lock" 2>/dev/null)), expected none; see \
stop."
}

# Locks are flock's, which the kernel frees when their holder dies. A claim is
# a file's age and text, for its maker's connection ends at once.
claim() {
  exec 8>>"$claim"
  flock 8
  if [ -s "$claim" ] && [ -z "$(find "$claim" -mmin +2)" ]; then
    fail "a start is under way ($(cat "$claim")), expected none; its claim \
ends within two minutes."
  fi
  if [ -z "$replace" ] && ! flock --nonblock "$lock" true; then
    refuse_second
  fi
  me >"$claim"
}

start() {
  # Whatever comes now, the file of secrets goes.
  [ -n "$dry_run" ] || trap 'rm -f "$secrets_file"' EXIT
  [ ${#COMMAND[@]} -gt 0 ] || fail \
    "what to run is needed, such as -- python -m imagen_jax.train --config=..."
  [ -n "$env" ] || fail "--env is needed, see --help."
  case $env in
    *[!a-z0-9]*)
      fail "--env is $(printf %q "$env"), expected a name of launch/env."
      ;;
  esac
  [ -f "launch/env/$env.sh" ] || fail "there is no launch/env/$env.sh."
  if [ -n "$dry_run" ]; then
    printf '%s\n' ". launch/env/$env.sh"
    run "${COMMAND[@]}"
    return
  fi
  exec 9>>"$lock"
  flock --nonblock 9 || refuse_second
  if running; then refuse_second; fi # of a start without locks
  me >"$lock"
  : >"$claim"
  rm -f "$code_file"
  if [ -n "$secrets" ]; then
    local line
    while IFS= read -r line; do
      export "${line?}"
    done <"$secrets_file"
  fi
  # shellcheck source=launch/env/v5p.sh
  . "launch/env/$env.sh"
  export PATH=$root/.venv/bin:$PATH PYTHONUNBUFFERED=1
  printf '%s: %s\n' "$(date)" "$(quote "${COMMAND[@]}")" >>"$log"
  # This shell, in a group of its own, holds the lock and waits to write how
  # COMMAND ended.
  # shellcheck disable=SC2016 # expanded by that shell
  setsid bash -c 'trap : TERM
    "$@" 9>&-
    code=$?
    echo "$code" >"$HOME/imagen_jax.code"
    printf "%s: ended with exit code %s\n" "$(date)" "$code"' \
    imagen_jax_run "${COMMAND[@]}" >>"$log" 2>&1 </dev/null &
  echo $! >"$pid_file"
  printf 'process %s of %s' "$!" "$(me)" >"$lock"
  echo "$(hostname): started process $!"
}

# last_line: of the log, as a terminal may show it; progress ends with \r.
last_line() {
  tail -n 1 "$log" 2>/dev/null | tr '\r' '\n' | tail -n 1 |
    tr -d '\000-\010\013-\037\177'
}

# launch/watch.py reads these lines.
status() {
  local how=""
  if running; then
    echo "$(hostname): running, process $pid; $(last_line)"
    return
  fi
  if [ -s "$code_file" ]; then
    how="ended with exit code $(cat "$code_file"); "
  fi
  echo "$(hostname): not running; $how$(last_line)"
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
  ticks=50
  while running && [ $((ticks--)) -gt 0 ]; do sleep 0.1; done
}

verb=${1-}
case $verb in
  setup | claim | start | status | logs | stop) shift ;;
  '') fail "a verb is needed: $VERBS." ;;
  -*) ;; # such as --help
  *) fail "verb '$verb' is unknown, expected $VERBS." ;;
esac
parse "$@"
need_count grace lines
case $verb in
  setup) setup ;;
  claim) [ -n "$dry_run" ] || claim ;;
  start) start ;;
  status) status ;;
  logs) run tail -n "$lines" -F "$log" ;;
  stop)
    if [ -n "$dry_run" ]; then
      echo "kill -TERM \$(pgrep -P \$(cat $(quote "$pid_file")))"
    else
      stop
    fi
    ;;
  *) fail "a verb is needed: $VERBS." ;;
esac
