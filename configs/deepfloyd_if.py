r"""DeepFloyd IF: text to 64x64 to 256x256, with its published weights.

  python -m imagen_jax.sample --config=configs/deepfloyd_if.py:xl,l \
    --prompt="a corgi in a beret"
  python -m imagen_jax.sample --config=configs/deepfloyd_if.py:m,m \
    --weights=DIR --prompt="a corgi in a beret"

The weights are gated, and for research only: accept their licence at
huggingface.co/DeepFloyd/IF-I-XL-v1.0, and put your token into HF_TOKEN. They
are downloaded when they are first used. --weights names a folder that has them,
by the names of their repositories.

The argument is the sizes of the two nets: m, l or xl, then m or l. A third,
sr1024, adds the paper's last stage, 256x256 to 1024x1024, whose weights were
never released: train it with configs/deepfloyd_if_train.py:sr1024. The
config.json beside the weights describes each net. Sampling is as published: 100
and 50 steps of IF's lists, the learned variance, guidance 7 and 4.

For fewer steps, use DPM-Solver++ on levels uniform in log-SNR: --steps=25 and,
for both if1 and if2, --config.if1.sampling.step.kind=dpm_solver++
--config.if1.sampling.grid.kind=logsnr --config.if1.sampling.grid.t_first=0.99.
"""

from ml_collections import ConfigDict

from imagen_jax.configs import sr1024, t5_xxl

SIZES = {"if1": ("m", "l", "xl"), "if2": ("m", "l"), "sr1024": ("sr1024",)}
HUB = "hf://DeepFloyd"


def stage(repository: str, **settings) -> dict:
  """Returns the settings that both nets share."""
  folder = f"{HUB}/{repository}/unet"
  net = dict(kind="diffusers", folder=folder, dtype="bfloat16")
  schedule = dict(kind="discrete_cosine")
  return dict(
    stage=dict(net=net, schedule=schedule, prediction="eps", **settings),
    weights=folder,
  )


def sampling(timesteps: str, guidance: float, cap: float, **others) -> dict:
  """Returns a net's sampling settings, which include the shared ones."""
  return dict(
    timesteps=timesteps,
    guidance=guidance,
    grid=dict(kind="time"),
    step=dict(kind="ancestral_learned"),
    threshold=dict(kind="dynamic", p=95.0, cap=cap),
    **others,
  )


def text(repository: str) -> dict:
  """Returns T5-XXL with the conventions of IF, whose nets read padding too."""
  folder = f"{HUB}/{repository}"
  text = t5_xxl.get_config().text
  text.update(
    vocabulary=f"{folder}/tokenizer/spiece.model",
    weights=f"{folder}/text_encoder",
    length=77,
    batch_size=1,
    attend_padding=True,
    null="empty",
    lowercase=True,
  )
  return text


def get_config(sizes: str = "xl,l") -> ConfigDict:
  """Returns the cascade of nets of these sizes."""
  given = dict(zip(SIZES, sizes.split(","), strict=False))
  known = all(size in SIZES[name] for name, size in given.items())
  if not known or sizes.count(",") not in (1, 2):
    raise ValueError(
      f"deepfloyd_if.py:{sizes} is unknown, expected m, l or xl, then m or l, "
      "and sr1024 or nothing, such as xl,l"
    )
  config = ConfigDict()
  config.stages = tuple(given)
  first = f"IF-I-{given['if1'].upper()}-v1.0"
  second = f"IF-II-{given['if2'].upper()}-v1.0"
  config.if1 = stage(first, size=64) | dict(
    sampling=sampling("smart100", 7.0, 1.5)
  )
  config.if2 = stage(
    second,
    size=256,
    lowres_size=64,
    upsample="bilinear_aligned",
    aug_schedule=dict(kind="discrete_cosine"),
  ) | dict(sampling=sampling("smart50", 4.0, 1.0, aug_level=0.25))
  if "sr1024" in given:
    last = sr1024.get_config()
    keys = ("stage", "sampling", "weights")
    config.sr1024 = {key: last[key] for key in keys}
  config.text = text(first)
  config.batch_size = 1
  config.mesh = dict(data=1, fsdp=1, tensor=-1)
  return config
