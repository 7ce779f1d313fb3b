"""Published speeds of accelerators, by the device_kind of a JAX device.

Sources, read in December 2026:

- TPUs: docs.cloud.google.com/tpu/docs, pages v4, v5e, v5p-training, v6e and
  tpu7x. tpu7x has a table of v5p, v6e and tpu7x with the bandwidths of memory,
  links and network. v4's page states 1.1 PB/s of all-reduce for 4,096 chips,
  which are 6 links of 50 GB/s each way. v5e's page states a network of 6.4
  Tbit/s for 256 chips. v4's states none: a v5e's is assumed.
- GPUs: NVIDIA's data sheets. Links are NVLink, but PCIe for an L4. The network
  is one port for each GPU, of 200 Gbit/s (A100) or 400 (H100, H200) as in DGX,
  and 100 for an L4, which is assumed.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Speed:
  """Holds the published speeds of one JAX device.

  Attributes:
    tflops: TFLOP/s of dense matrix products in bfloat16.
    hbm_gb: GB/s of its memory.
    links_gb: GB/s of all its links to other devices, both directions together.
    network_gb: GB/s of its share of its host's network, in one direction.
  """

  tflops: float
  hbm_gb: float
  links_gb: float
  network_gb: float


SPEEDS = {
  "TPU v4": Speed(275.0, 1200, 600, 3.125),
  "TPU v5": Speed(459.0, 2765, 1200, 6.25),
  "TPU v5 lite": Speed(197.0, 819, 400, 3.125),
  "TPU v6 lite": Speed(918.0, 1638, 800, 12.5),
  # One of the two devices of a chip.
  "TPU7x": Speed(1153.5, 3690, 600, 6.25),
  "NVIDIA A100-SXM4-40GB": Speed(312.0, 1555, 600, 25),
  "NVIDIA A100-SXM4-80GB": Speed(312.0, 2039, 600, 25),
  "NVIDIA H100 80GB HBM3": Speed(989.4, 3350, 900, 50),
  "NVIDIA H200": Speed(989.4, 4800, 900, 50),
  "NVIDIA L4": Speed(121.0, 300, 64, 12.5),
}
PEAK_TFLOPS = {kind: speed.tflops for kind, speed in SPEEDS.items()}
