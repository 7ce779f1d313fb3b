#!/usr/bin/env bash
# Checks style and runs the tests, on the CPU:
#   launch/test.sh [--oracles | --all] [arguments of pytest]
# --oracles: the tests against torch, transformers and diffusers, which it
# installs.
# --all: every test, the slow ones, those against the oracles and those that
# compile for TPUs too, for which it installs libtpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launch/environment.sh
export JAX_PLATFORMS=cpu

select='not slow and not oracles'
case ${1-} in
  --oracles) select=oracles ;;
  --all) select= ;;
esac
if [ "$select" != 'not slow and not oracles' ]; then
  shift
  # From the usual index, torch on Linux brings gigabytes of CUDA; to spare
  # them, name PyTorch's index of CPU builds in PIP_EXTRA_INDEX_URL beforehand.
  install=(.venv/bin/python -m pip --disable-pip-version-check install -qq
    --no-build-isolation -c requirements-lock.txt -e)
  echo 'installing torch, transformers and diffusers ...'
  "${install[@]}" '.[oracles]'
  if [ -z "$select" ]; then
    echo 'installing libtpu ...'
    "${install[@]}" '.[compile]'
  fi
fi

.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
# Two at a time, each of whole files, whose fixtures are made once, in the order
# of tests/conftest.py.
.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
  -m "$select" "$@"
