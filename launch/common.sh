# shellcheck shell=bash
# Sourced by the scripts of launch/, from anywhere: their flags, and commands
# that are run, or with --dry_run printed. A script's help is the comment at
# its top. Locals that are beside a flag's variable begin with a line.

: "${root:?the repository, set by who sources this}"
dry_run=
extra=()   # every --extra=..., passed on to the platform's own command
COMMAND=() # what follows --

# fail SENTENCE: says it and exits.
fail() {
  echo "launch/${0##*/}: $1" >&2
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

help() {
  sed -e '1d;/^[^#]/,$d' -e 's/^# \{0,1\}//' "$root/launch/${0##*/}"
}

# has WORD LIST
has() {
  case " $2 " in
    *" $1 "*) ;;
    *) return 1 ;;
  esac
}

# parse NAMES SWITCHES ARGUMENT...: --name=VALUE sets $name, --switch sets
# $switch to 1; what there are of both is listed with spaces between.
parse() {
  local _names=$1 _switches="$2 dry_run" _name
  shift 2
  while [ $# -gt 0 ]; do
    _name=${1%%=*}
    _name=${_name#--}
    case $1 in
      --help | -h)
        help
        exit
        ;;
      --)
        shift
        COMMAND=("$@")
        return
        ;;
      --extra=*) extra+=("${1#*=}") ;;
      --*=*)
        has "$_name" "$_names" ||
          fail "flag '$1' is unknown, expected one of those in --help."
        printf -v "$_name" %s "${1#*=}"
        ;;
      --*)
        has "$_name" "$_names" &&
          fail "flag '$1' has no value, expected $1=VALUE."
        has "$_name" "$_switches" ||
          fail "flag '$1' is unknown, expected one of those in --help."
        printf -v "$_name" 1
        ;;
      *)
        fail "argument '$1' is unexpected, expected flags, then -- COMMAND."
        ;;
    esac
    shift
  done
}

# need NAME...: each flag has a value.
need() {
  local _name
  for _name; do
    [ -n "${!_name}" ] || fail "--$_name is needed, see --help."
  done
}

need_command() {
  [ ${#COMMAND[@]} -gt 0 ] || fail \
    "what to run is needed, such as -- python -m imagen_jax.train --config=..."
}

# A count of at least 1 without a leading zero.
is_count() {
  case $1 in
    '' | 0* | *[!0-9]*) return 1 ;;
  esac
}

# need_count NAME...: each flag is one.
need_count() {
  local _name
  for _name; do
    is_count "${!_name}" ||
      fail "--$_name is '${!_name}', expected a number of at least 1."
  done
}

# generation_of TYPE: v5e for v5litepod-16, and so on; nothing if unknown.
generation_of() {
  case $1 in
    v4-* | v5p-* | v6e-* | tpu7x-*) printf '%s' "${1%%-*}" ;;
    v5litepod-* | v5e-*) printf v5e ;;
  esac
}

# platform_type TYPE: the same in Google Cloud's words.
platform_type() {
  case $1 in
    v5e-*) printf '%s' "v5litepod-${1#v5e-}" ;;
    *) printf '%s' "$1" ;;
  esac
}

# need_env NAME: launch/env/NAME.sh exists.
need_env() {
  local known
  [ -f "$root/launch/env/$1.sh" ] && return
  known=$(cd "$root/launch/env" && echo *.sh)
  fail "there is no launch/env/$1.sh, expected one of ${known//.sh/}."
}
