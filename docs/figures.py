"""Draws the cascade and the nets of configs as SVG."""

import dataclasses
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import jax

from imagen_jax import build
from imagen_jax.build import configs
from imagen_jax.nets.efficient_unet import EfficientUNet
from imagen_jax.nets.unet import UNet
from imagen_jax.stage import Stage
from imagen_jax.training.setup import net_shapes

CASCADES = ("imagen", "shapes")
NETS = ("base_64", "sr256", "sr1024")
BLUE, GREEN, GREY = "#dbe9ff", "#dcf3e0", "#eeeeee"
STYLE = "font-family: sans-serif; font-size: 14px; fill: #111111"


@dataclasses.dataclass(frozen=True)
class Level:
  """Describes a level of a net: the blocks on its way down and its way up.

  Attributes:
    resolution: of its blocks, in pixels.
    width: in channels.
    down: the number of residual blocks on the way down.
    up: the number of residual blocks on the way up.
    attention: what the pixels attend to, such as "pixels + text"; "" if to
      nothing.
    skip: whether the way up gets the outputs of the way down.
  """

  resolution: int
  width: int
  down: int
  up: int
  attention: str
  skip: bool


def files() -> dict[str, str]:
  """Returns the text of every figure by the name of its file."""
  made = {f"cascade_{name}.svg": cascade(name) for name in CASCADES}
  return made | {f"net_{name}.svg": net(name) for name in NETS}


def levels(stage: Stage) -> list[Level]:
  """Returns the levels of a stage's net, from high resolution to low."""
  if isinstance(stage.net, UNet):
    return _unet_levels(stage.net)
  assert isinstance(stage.net, EfficientUNet), type(stage.net)
  return _efficient_levels(stage.net, stage.size)


def _unet_levels(net: UNet) -> list[Level]:
  """Returns a U-Net's levels; its way up has one more block in each."""
  found = []
  for i, (multiple, blocks) in enumerate(
    zip(net.channel_mult, net.blocks, strict=True)
  ):
    resolution = net.resolution(i)
    parts = [
      ("pixels", resolution in net.attn_resolutions),
      ("text", resolution in net.text_cross_attn_res),
    ]
    attention = " + ".join(name for name, there in parts if there)
    width = net.embed_dim * multiple
    found.append(Level(resolution, width, blocks, blocks + 1, attention, True))
  return found


def _efficient_levels(net: EfficientUNet, size: int) -> list[Level]:
  """Returns an Efficient U-Net's levels, after their strided convolutions."""
  found = []
  for spec in net.blocks:
    size //= max(spec.strides or (1,))
    parts = [
      ("pixels", spec.self_attention),
      ("text", spec.text_cross_attention),
    ]
    attention = " + ".join(name for name, there in parts if there)
    count = spec.num_res_blocks
    found.append(Level(size, spec.channels, count, count, attention, True))
  # The innermost link is not a skip.
  return [*found[:-1], dataclasses.replace(found[-1], skip=False)]


def cascade(name: str) -> str:
  """Draws a cascade: the text encoder, and its stages from left to right."""
  config = configs.resolve(name, None)
  made = build.cascade(config)
  encoder = build.required_text(config).encoder
  width = 190
  drawn = [
    *_box(10, 20, 150, 40, ["prompt"], GREY),
    *_box(
      width + 10,
      20,
      300,
      40,
      [f"T5, {encoder.num_encoder_layers} layers of {encoder.emb_dim}, frozen"],
      GREEN,
    ),
    _arrow(160, 40, width + 10, 40),
  ]
  for i, (stage, sampling) in enumerate(
    zip(made.stages, made.samplings, strict=True)
  ):
    x = 10 + i * width
    sampler = type(sampling.step).__name__
    lines = [
      made.names[i],
      f"{stage.size} x {stage.size}",
      f"{type(stage.net).__name__}, {_millions(_parameters(config, stage))}",
      f"{sampling.num_steps} steps, {sampler}",
      f"guidance {sampling.guidance:g}",
    ]
    drawn += _box(x, 110, 160, 110, lines, BLUE)
    drawn.append(_arrow(x + 80, 85, x + 80, 110))
    if i:
      drawn.append(_arrow(x - 30, 165, x, 165))
  last = 10 + (len(made.stages) - 1) * width + 80
  # The text reaches every stage along one line below the encoder.
  drawn.append(_line(90, 85, max(last, width + 160), 85))
  drawn.append(_line(width + 160, 60, width + 160, 85))
  return _svg(len(made.stages) * width, 240, drawn, f"Cascade {name}")


def net(name: str) -> str:
  """Draws a stage's net: its levels down on the left, up on the right."""
  config = configs.resolve(name, None)
  stage = build.stage(config.stage)
  found = levels(stage)
  middle = isinstance(stage.net, UNet)
  title = f"{type(stage.net).__name__} of {name}, "
  title += f"{_millions(_parameters(config, stage))} parameters"
  drawn = [f'<text x="310" y="22" text-anchor="middle">{title}</text>']
  for i, level in enumerate(found):
    y, left, right = 40 + i * 80, 10 + i * 20, 400 - i * 20
    for x, count, word in ((left, level.down, "down"), (right, level.up, "up")):
      attends = [f"attends to {level.attention}"] if level.attention else []
      blocks = f"{count} residual blocks {word}"
      place = f"{level.resolution} x {level.resolution}, {level.width} channels"
      drawn += _box(x, y, 210, 64, [place, blocks, *attends], BLUE)
      if i:
        before = (x + 85, y - 16, x + 85, y)
        drawn.append(_arrow(*(before if word == "down" else _up(before))))
    if level.skip:
      drawn.append(_arrow(left + 210, y + 32, right, y + 32))
  height = 40 + len(found) * 80
  end = 10 + (len(found) - 1) * 20 + 105
  other = 400 - (len(found) - 1) * 20 + 105
  if middle:
    attention = ", attention" if found[-1].attention else ""
    lines = [f"middle: 2 residual blocks{attention}"]
    drawn += _box(185, height + 10, 250, 40, lines, BLUE)
    drawn.append(_arrow(end + 60, height - 16, end + 110, height + 10))
    drawn.append(_arrow(other - 110, height + 10, other - 60, height - 16))
  else:
    drawn.append(_arrow(end + 105, height - 48, other - 105, height - 48))
  return _svg(620, height + (60 if middle else 4), drawn, title)


def _parameters(config: Any, stage: Stage) -> int:
  """Returns the number of a net's parameters, without making them."""
  shapes = net_shapes(stage, build.text(config.text))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _millions(count: int) -> str:
  """Returns a count as 4.9M or 2.26B."""
  return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.3g}M"


def _up(ends: Sequence[int]) -> tuple[int, ...]:
  """Returns a line's ends in the opposite order."""
  x_0, y_0, x_1, y_1 = ends
  return x_1, y_1, x_0, y_0


def _box(
  x: int, y: int, width: int, height: int, lines: Sequence[str], colour: str
) -> list[str]:
  """Returns a rectangle with lines of text in its middle."""
  made = [
    f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" '
    f'fill="{colour}" stroke="#666666"/>'
  ]
  first = y + height / 2 - 9 * (len(lines) - 1) + 5
  for i, line in enumerate(lines):
    made.append(
      f'<text x="{x + width / 2:g}" y="{first + 18 * i:g}" '
      f'text-anchor="middle">{escape(line)}</text>'
    )
  return made


def _line(x_0: int, y_0: int, x_1: int, y_1: int, end: str = "") -> str:
  """Returns a line, with an arrow's head if `end` names one."""
  return (
    f'<line x1="{x_0}" y1="{y_0}" x2="{x_1}" y2="{y_1}" stroke="#666666" '
    f'stroke-width="1.5"{end}/>'
  )


def _arrow(x_0: int, y_0: int, x_1: int, y_1: int) -> str:
  """Returns a line that ends in an arrow's head."""
  return _line(x_0, y_0, x_1, y_1, ' marker-end="url(#head)"')


def _svg(width: int, height: int, drawn: Sequence[str], title: str) -> str:
  """Returns a whole figure on white, which scales with its page."""
  head = (
    '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" '
    'refY="4" orient="auto"><path d="M0,0 L8,4 L0,8 Z" fill="#666666"/>'
    "</marker></defs>"
  )
  return "\n".join(
    [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
      f' width="{width}" height="{height}" role="img" style="{STYLE}">',
      f"<title>{escape(title)}</title>",
      head,
      f'<rect width="{width}" height="{height}" rx="8" fill="white"/>',
      *drawn,
      "</svg>",
      "",
    ]
  )
