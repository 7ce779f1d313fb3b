# shellcheck shell=sh
# Settings for NVIDIA GPUs, to be sourced. Yours in the same variables win.

# Starts the collectives of sharded parameters and gradients early, so that
# convolutions hide them; off by default.
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS-}"

# JAX takes 75 % of a GPU's memory unless told otherwise; training has the GPU
# to itself, and the rest is room for the CUDA libraries.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION-0.9}"
