#!/usr/bin/env bash
# From a prompt to a picture with the weights in the repository, on the CPU:
#   launch/quickstart.sh "two red circles above a blue square" [--seed=1 ...]
# What follows the prompt goes to `python -m imagen_jax.sample`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
  '' | -*)
    echo "usage: launch/quickstart.sh \"PROMPT\" [flags of imagen_jax.sample]" >&2
    exit 2
    ;;
esac

launch/environment.sh
.venv/bin/python -m imagen_jax.sample --config=configs/shapes.py \
  --prompt="$1" --outdir=samples "${@:2}"
case " ${*:2}" in
  *' --outdir'* | *' -outdir'*) ;; # not in samples, then; the program says where
  *) echo "The picture is in $PWD/samples" ;;
esac
