# shellcheck shell=sh
# Flags for TPU v5e, to be sourced. Yours in LIBTPU_INIT_ARGS come last and win.

# Gathers a convolution's sharded kernel at once, rather than in a loop that
# passes pieces around. Two residual blocks of 512 channels, compiled for 16
# chips by libtpu 0.0.42 and 0.0.52, have 10 all-gathers where 11 loops with 52
# permutes were, in 12 to 18 % less memory, and FLOPs that the compiler counts
# right. Compiling takes twice as long. The speed is not measured yet.
flags=--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000

# Where mesh.fsdp is a whole slice of 64 chips, libtpu would gather by padding
# with zeros and summing, which is twice the traffic. Of 22 MiB of all-reduces
# in the same blocks, this leaves 8, beside 14 MiB of all-gathers, in 2 to 10 %
# less memory. Elsewhere it changes nothing.
flags="$flags --xla_tpu_prefer_async_allgather_to_allreduce=true"

# docs/planning.md has what else was tried.

export LIBTPU_INIT_ARGS="$flags ${LIBTPU_INIT_ARGS-}"
unset flags
