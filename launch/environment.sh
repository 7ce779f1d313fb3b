#!/usr/bin/env bash
# Makes .venv at the repository's root from requirements-lock.txt, or returns
# at once where that is done. One of its own that was cut short, or that
# belongs to other versions or another folder, is made anew; a .venv that
# somebody else made is brought to these versions and otherwise left alone.
# Where there is no setup.py, as on a TPU's worker, the package is left out.
set -euo pipefail
cd "$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")"

ours=.venv/made_by_launch # there from the start in one of its own
stamp=.venv/imagen_jax.stamp # there at the end: what it was made from
sources=(requirements-lock.txt)
if [ -e setup.py ]; then sources+=(setup.py); fi
wanted=$({ pwd -P; cat "${sources[@]}"; } | cksum)

fail() {
  echo "launch/environment.sh: $1" >&2
  exit 1
}

is_made() {
  [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]
}

install() {
  .venv/bin/python -m pip --disable-pip-version-check install -qq "$@"
}

if is_made; then exit; fi
if command -v flock >/dev/null; then
  exec 9<. # of two first runs at once, the second waits for the first
  flock 9
  if is_made; then exit; fi
fi

for python in python3.11 python3 python3.12 python3.13 ''; do
  if "$python" -c 'import ensurepip, sys, venv
sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
done
[ -n "$python" ] ||
  fail "needs Python 3.11 or newer with its venv module, and found none."

echo "making .venv with $("$python" -V) (once, a few minutes) ..."
start=$SECONDS
if [ -e "$ours" ]; then rm -rf .venv; fi
if [ ! -e .venv ]; then
  mkdir .venv
  : >"$ours"
fi
rm -f "$stamp"
"$python" -m venv .venv || fail "could not make .venv; see the lines above."
echo "installing the packages of requirements-lock.txt ..."
install -r requirements-lock.txt ||
  fail "could not install requirements-lock.txt; see pip's lines above."
if [ -e setup.py ]; then
  install --no-deps --no-build-isolation -e . ||
    fail "could not install imagen_jax; see pip's lines above."
fi
echo "$wanted" >"$stamp"
echo "made .venv in $((SECONDS - start)) s"
