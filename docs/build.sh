#!/usr/bin/env bash
# Builds the documentation site and prints the path of its first page:
#   docs/build.sh [argument of sphinx-build...]
# Warnings are errors. It installs the extra `docs` into .venv, once; the build
# itself needs no network. DOCS_PYTHON names another Python that has the extra.
set -euo pipefail
cd "$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")"
export JAX_PLATFORMS=cpu

python=${DOCS_PYTHON-}
if [ -z "$python" ]; then
  launch/environment.sh
  python=.venv/bin/python
  "$python" -c 'import furo, myst_parser, sphinx' 2>/dev/null || {
    echo 'installing Sphinx, furo and myst-parser ...'
    "$python" -m pip --disable-pip-version-check install -qq \
      --no-build-isolation -c requirements-lock.txt -e '.[docs]'
  }
fi
"$python" -m sphinx -W --keep-going -n -q -b html docs docs/_build/html "$@"
echo "$PWD/docs/_build/html/index.html"
