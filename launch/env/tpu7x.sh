# shellcheck shell=sh
# Flags for TPU7x, to be sourced: none. The windowed-einsum flag of the other
# generations changes nothing here, where libtpu 0.0.42 gathers a convolution's
# sharded kernel at once by itself (4 all-gathers, 4 reduce-scatters, no loop).
# Asynchronous gathers change nothing either: SparseCores gather by default.
