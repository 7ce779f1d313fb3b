#!/usr/bin/env bash
# Makes .venv at the repository's root from requirements-lock.txt:
#   launch/environment.sh [--core]
# With --core it has the packages that sampling needs, a third of all; called
# without, all others are added. It returns at once where .venv has what is
# asked for. One of its own that was cut short, or that belongs to other
# versions or another folder, is made anew; a .venv that somebody else made is
# brought to these versions and otherwise left alone. Where there is no
# setup.py, as on a TPU's worker, the package is left out.
set -euo pipefail
cd "$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")"

fail() {
  echo "launch/environment.sh: $1" >&2
  exit "${2-1}"
}

case ${1-} in
  '') what=all ;;
  --core) what=core ;;
  *) fail "unexpected argument $1, expected --core or nothing." 2 ;;
esac

ours=.venv/made_by_launch # there from the start in one of its own
stamp=.venv/imagen_jax.stamp # there at the end: what it has and was made from
sources=(requirements-lock.txt)
if [ -e setup.py ]; then sources+=(setup.py); fi
from=$({ pwd -P; cat "${sources[@]}"; } | cksum)

# is_made WHAT: whether .venv has all, or the core.
is_made() {
  [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$1 $from" ]
}

is_enough() {
  is_made all || { [ $what = core ] && is_made core; }
}

# find_python MODULES: prints the first Python of 3.11 or newer that has them.
find_python() {
  for python in python3.11 python3 python3.12 python3.13; do
    if "$python" -c "import $1, sys
sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
      echo "$python"
      return
    fi
  done
}

# Shows how far pip is: one line that changes on a terminal, else a few lines.
progress() {
  local count=0 line
  while IFS= read -r line; do
    case $line in
      'Collecting '*)
        count=$((count + 1))
        line=${line#Collecting }
        if [ -t 1 ]; then
          printf '\r\033[K  %d: %s' $count "${line%% (*}"
        elif [ $((count % 25)) -eq 0 ]; then
          echo "  $count packages are there ..."
        fi
        ;;
      'Installing collected'*)
        if [ -t 1 ]; then printf '\r\033[K'; fi
        line=${line#*: }
        line=${line//[^,]/}
        if [ -n "$line" ]; then
          echo "  installing $((${#line} + 1)) packages ..."
        fi
        ;;
    esac
  done
}

# install [argument of pip...]: without warnings about indexes and backends.
install() {
  PYTHONWARNINGS=ignore \
    .venv/bin/python -m pip --disable-pip-version-check install "$@" \
    2> >(grep -v '^WARNING: ' >&2) | progress
}

if is_enough; then exit; fi
if command -v flock >/dev/null; then
  exec 9<. # of two first runs at once, the second waits for the first
  flock 9
  if is_enough; then exit; fi
fi

start=$SECONDS
if ! is_made core; then
  python=$(find_python 'ensurepip, venv')
  lacks_pip=
  if [ -z "$python" ]; then # as on Colab and Debian; its own pip serves, then
    python=$(find_python 'pip, venv')
    lacks_pip=--without-pip
  fi
  [ -n "$python" ] ||
    fail "needs Python 3.11 or newer with its venv module and pip, and found \
none; on Debian and Ubuntu: apt install python3-venv."
  echo "making .venv with $("$python" -V) (once) ..."
  if [ -e "$ours" ]; then rm -rf .venv; fi
  if [ ! -e .venv ]; then
    mkdir .venv
    : >"$ours"
  fi
  rm -f "$stamp"
  "$python" -m venv $lacks_pip .venv ||
    fail "could not make .venv; see the lines above."
  if [ -n "$lacks_pip" ]; then
    "$python" -m pip --disable-pip-version-check --python .venv/bin/python \
      install -qq pip setuptools ||
      fail "could not install pip; see the lines above."
  fi
fi

if [ $what = core ]; then
  echo "installing the packages that sampling needs, of requirements-lock.txt ..."
  # setuptools first: by it pip reads which packages those are.
  if ! { install -c requirements-lock.txt setuptools &&
    install -c requirements-lock.txt --no-build-isolation -e .; }; then
    fail "could not install imagen_jax; see pip's lines above."
  fi
else
  echo "installing the packages of requirements-lock.txt (a few minutes) ..."
  install -r requirements-lock.txt ||
    fail "could not install requirements-lock.txt; see pip's lines above."
  if [ -e setup.py ]; then
    install --no-deps --no-build-isolation -e . ||
      fail "could not install imagen_jax; see pip's lines above."
  fi
fi
echo "$what $from" >"$stamp"
echo "made .venv in $((SECONDS - start)) s"
