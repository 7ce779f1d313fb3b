# shellcheck shell=sh
# Flags for several TPU slices, which the data centre's network (DCN) connects,
# to be sourced after those of the generation: none yet.

# Not here: xla_tpu_enable_data_parallel_all_reduce_opt and
# xla_tpu_data_parallel_opt_different_sized_ops, by which others overlap the
# gradients' all-reduce between slices. With fsdp within a slice it is 9 GB a
# slice and step, 12 ms at 6.4 Tbit/s. To be compiled for two slices first.
