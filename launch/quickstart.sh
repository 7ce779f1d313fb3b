#!/usr/bin/env bash
# From a prompt to an image with the weights in the repository, on the CPU:
#   launch/quickstart.sh "two red circles above a blue square" [--seed=1 ...]
# What follows the prompt goes to `python -m imagen_jax.sample`.
set -euo pipefail
root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")

case ${1-} in
  '' | -*)
    echo "usage: launch/quickstart.sh \"PROMPT\" [flags of imagen_jax.sample]" >&2
    exit 2
    ;;
esac

"$root/launch/environment.sh"
# Paths among the flags are the caller's, so this stays in the caller's folder.
# One image at a time is the fastest way to the first one.
"$root/.venv/bin/python" -m imagen_jax.sample \
  --config="$root/configs/shapes.py" --prompt="$1" --outdir="$root/samples" \
  --batch_size=1 "${@:2}"
