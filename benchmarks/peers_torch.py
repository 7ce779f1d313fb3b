"""Measures the peers' side of a row of peers.py, in their environment."""

import io
import pathlib
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import peers
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

Work = tuple[Callable[[], Any], dict[str, Any]]
DEVICE = {"cpu": "cpu", "gpu": "cuda"}
DTYPE = {"cpu": torch.float32, "gpu": torch.bfloat16}


def timed(call: Callable[[], Any], net: Any, items: int, device: str) -> Work:
  """Returns a call that waits for the device, and its counts.

  Operations are counted by a call of its own, which is also the warm-up.
  """
  counter = FlopCounterMode(display=False)
  with counter:
    call()

  def work():
    call()
    if device == "gpu":
      torch.cuda.synchronize()

  known = {
    "parameters": sum(p.numel() for p in net.parameters()),
    "flops": counter.get_total_flops(),
    "items": items,
  }
  if device == "gpu":
    known["peak_bytes"] = torch.cuda.max_memory_allocated
  return work, known


def imagen(device: str) -> Any:
  """Returns imagen-pytorch's small stage."""
  from transformers import T5Config

  # Its import would download the config of an encoder that is not used here.
  with mock.patch.object(T5Config, "from_pretrained", return_value=T5Config()):
    from imagen_pytorch import Imagen, Unet

  net = Unet(
    dim=40, cond_dim=64, dim_mults=(1, 2, 3), num_resnet_blocks=2,
    layer_attns=(False, False, True), layer_cross_attns=(False, True, True),
    text_embed_dim=peers.TEXT[1], max_text_len=peers.TEXT[0],
  )  # fmt: skip
  return Imagen(
    unets=net, image_sizes=peers.SIZE, timesteps=peers.STEPS,
    text_embed_dim=peers.TEXT[1], cond_drop_prob=0.1,
  ).to(DEVICE[device])  # fmt: skip


def train(device: str) -> Work:
  """Trains the small net on one batch with Adam."""
  net = imagen(device)
  unet = net.get_unet(1)  # which is no submodule of net from now on
  optimizer = torch.optim.Adam(unet.parameters(), lr=1e-4)
  images = torch.zeros(peers.BATCH, 3, peers.SIZE, peers.SIZE)
  text = torch.randn(peers.BATCH, *peers.TEXT)
  images, text = images.to(DEVICE[device]), text.to(DEVICE[device])

  def call():
    optimizer.zero_grad()
    with torch.autocast(DEVICE[device], DTYPE[device],
                        enabled=device == "gpu"):  # fmt: skip
      loss = net(images, text_embeds=text, unet_number=1)
    loss.backward()
    optimizer.step()

  return timed(call, unet, peers.BATCH, device)


def sample(device: str, rows: int) -> Work:
  """Samples images with guidance from the small net."""
  net = imagen(device).eval()
  text = torch.randn(rows, *peers.TEXT, device=DEVICE[device])
  call = lambda: net.sample(
    text_embeds=text, cond_scale=3.0, use_tqdm=False, device=DEVICE[device]
  )
  return timed(call, net.get_unet(1), rows, device)


@torch.no_grad()
def deepfloyd_if(device: str, folder: pathlib.Path) -> Work:
  """Evaluates a net of DeepFloyd IF for a guided step of one image."""
  from diffusers import UNet2DConditionModel

  net = UNet2DConditionModel.from_pretrained(
    folder, torch_dtype=DTYPE[device], use_safetensors=True
  )
  net = net.eval().to(DEVICE[device])
  like = {"dtype": DTYPE[device], "device": DEVICE[device]}
  z = torch.randn(2, 3, 64, 64, **like)
  tokens = 0.1 * torch.randn(2, peers.TOKENS, 4096, **like)

  @torch.no_grad()
  def call():
    net(z, 500, encoder_hidden_states=tokens)

  return timed(call, net, 1, device)


def t5_base(device: str, folder: pathlib.Path) -> Work:
  """Encodes one prompt with T5 v1.1 base."""
  from transformers import T5EncoderModel

  net = T5EncoderModel.from_pretrained(folder, dtype=DTYPE[device])
  net = net.eval().to(DEVICE[device])
  ids = torch.randint(3, 32_000, (1, peers.TOKENS), device=DEVICE[device])

  @torch.no_grad()
  def call():
    net(ids)

  return timed(call, net, 1, device)


class Jpegs(torch.utils.data.Dataset):
  """Reads JPEGs, crops the central square and resizes it, by PIL in 8 bits."""

  def __init__(self, files: list[bytes], sizes: tuple[int, ...]):
    self._files, self._sizes = files, sizes

  def __len__(self) -> int:
    return 10**6

  def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
    image = Image.open(io.BytesIO(self._files[index % len(self._files)]))
    image = image.convert("RGB")
    side = min(image.size)
    left, top = ((n - side) // 2 for n in image.size)
    image = image.crop((left, top, left + side, top + side))
    return tuple(
      np.asarray(
        image.resize((size, size), Image.Resampling.BICUBIC), np.float32
      ) / 127.5 - 1
      for size in self._sizes
    )  # fmt: skip


def jpegs(size: int, folder: pathlib.Path) -> Work:
  """Reads batches of JPEGs of 640x480, resized; 256 with 64 beside it."""
  files = [file.read_bytes() for file in sorted(folder.glob("*.jpg"))]
  loader = torch.utils.data.DataLoader(
    Jpegs(files, (256, 64) if size == 256 else (size,)),
    batch_size=32, num_workers=torch.get_num_threads(),
  )  # fmt: skip
  batches = iter(loader)
  return lambda: [next(batches) for _ in range(4)], {"items": 4 * 32}


def make(row: str, device: str, folder: pathlib.Path) -> Work:
  """Returns the work of a row."""
  if row == "train":
    return train(device)
  if row.startswith("sample"):
    return sample(device, int(row.removeprefix("sample")))
  if row.startswith("IF"):
    return deepfloyd_if(device, folder)
  if row == "t5-base":
    return t5_base(device, folder)
  return jpegs(int(row.removeprefix("jpeg")), folder)


if __name__ == "__main__":
  row, device, folder, calls = sys.argv[1:]
  peers.report(lambda: make(row, device, pathlib.Path(folder)), int(calls))
