# shellcheck shell=sh
# Flags for TPU v6e, to be sourced. Yours in LIBTPU_INIT_ARGS come last and win.

# Gathers a convolution's sharded kernel at once, rather than in a loop that
# passes pieces around. Two residual blocks of 512 channels, compiled for 16
# chips by libtpu 0.0.42 and 0.0.52, have 4 all-gathers where 11 loops with 52
# permutes were, in 11 to 26 % less memory, and FLOPs that the compiler counts
# right. Compiling takes twice as long. The speed is not measured yet.
flags=--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000

# Gathers while products run: asynchronous gathers, which fusions carry on. In
# two residual blocks with attention, compiled for 16 chips by libtpu 0.0.42, 12
# of 17 gathers run inside fusions that compute meanwhile, and none did before.
# Memory stays within 7 %. With 512 channels the compiler estimates 3 % fewer
# cycles. A v5e does so by itself.
flags="$flags --xla_enable_async_all_gather=true"
# The second half of the same.
flags="$flags --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"

# Where mesh.fsdp is a whole slice of 64 chips, libtpu would gather by padding
# with zeros and summing, which is twice the traffic. Of 22 MiB of all-reduces
# in the same blocks, this leaves 8, beside 14 MiB of all-gathers, in 2 to 10 %
# less memory. Elsewhere it changes nothing.
flags="$flags --xla_tpu_prefer_async_allgather_to_allreduce=true"

# docs/planning.md has what else was tried.

export LIBTPU_INIT_ARGS="$flags ${LIBTPU_INIT_ARGS-}"
unset flags
