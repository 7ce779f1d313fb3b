#!/bin/sh
exec python3 "$(dirname -- "$(readlink -f -- "$0")")/tpu_vm.py" "$@"
