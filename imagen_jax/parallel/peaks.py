"""Peak speeds of accelerators, by the device_kind of a JAX device.

They are TFLOP/s of dense matrix products in bfloat16, stated by the makers.
"""

PEAK_TFLOPS = {
  "TPU v4": 275.0,
  "TPU v5": 459.0,
  "TPU v5 lite": 197.0,
  "TPU v6 lite": 918.0,
  "TPU7x": 1153.5,  # of one of the two devices of a chip
  "NVIDIA A100-SXM4-40GB": 312.0,
  "NVIDIA A100-SXM4-80GB": 312.0,
  "NVIDIA H100 80GB HBM3": 989.4,
  "NVIDIA H200": 989.4,
  "NVIDIA L4": 121.0,
}
