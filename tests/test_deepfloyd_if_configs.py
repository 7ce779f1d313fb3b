"""DeepFloyd IF's configs at the published sizes, by the published settings.

The config.json of the repositories stand in for them: no weights are needed.
"""

import json
import math
import pathlib

import jax
import pytest

from imagen_jax import build
from imagen_jax.configs import deepfloyd_if, deepfloyd_if_train
from imagen_jax.diffusion.samplers import LearnedAncestral
from imagen_jax.diffusion.schedules import DiscreteCosineSchedule

MANIFESTS = pathlib.Path(__file__).parent / "interop" / "deepfloyd_if"
# Parameters as counted from the published names and shapes.
SIZES = {
  "IF-I-M": 371_605_830,
  "IF-I-L": 935_365_830,
  "IF-I-XL": 4_304_695_110,
  "IF-II-M": 460_997_382,
  "IF-II-L": 1_243_277_190,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A folder with config.json of every published net, by repository."""
  home = tmp_path_factory.mktemp("hub")
  for name in SIZES:
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    folder = home / f"{name}-v1.0" / "unet"
    folder.mkdir(parents=True)
    config = manifest["config"] | {"_class_name": "UNet2DConditionModel"}
    (folder / "config.json").write_text(json.dumps(config))
  return home


def parameters(stage, text) -> int:
  key = jax.random.key(0)
  like = jax.eval_shape(lambda: build.init_net(stage, text, key))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like))


@pytest.mark.parametrize(("first", "second"), [("xl", "l"), ("m", "m")])
def test_the_cascade_is_as_published(home, first, second):
  config = deepfloyd_if.get_config(f"{first},{second},sr1024")
  build.move_weights(config, str(home))
  cascade, text = build.cascade(config), build.text(config.text)
  assert [stage.size for stage in cascade.stages] == [64, 256, 1024]
  names = (f"IF-I-{first.upper()}", f"IF-II-{second.upper()}")
  for i, name in enumerate(names):
    stage, sampling = cascade.stages[i], cascade.samplings[i]
    assert parameters(stage, text) == SIZES[name]
    assert config[cascade.names[i]].weights == str(home / f"{name}-v1.0/unet")
    assert stage.schedule == DiscreteCosineSchedule()
    assert sampling.step == LearnedAncestral()
    assert sampling.guidance == (7, 4)[i]
    assert sampling.threshold.cap == (1.5, 1.0)[i]
    assert sampling.num_steps == (100, 50)[i]
  assert cascade.samplings[1].aug_level == 0.25
  assert cascade.stages[1].upsample is not None
  assert (text.length, text.null, text.attend_padding) == (77, "empty", True)
  assert text.lowercase


@pytest.mark.parametrize("net", ["if1,l", "if2,m", "sr1024"])
def test_training_is_of_the_same_stages(home, net):
  config = deepfloyd_if_train.get_config(net)
  build.move_weights(config, str(home))
  build.check_keys(config)
  name, _, size = net.partition(",")
  sizes = {"if1": f"{size},l", "if2": f"xl,{size}"}.get(name, "xl,l,sr1024")
  cascade = deepfloyd_if.get_config(sizes)
  build.move_weights(cascade, str(home))
  assert build.stage(config.stage) == build.stage(cascade[name].stage)
  start = build.training(config.train).start_from
  assert start == (None if name == "sr1024" else cascade[name].weights)
  assert build.optimizer(config.optimizer) is not None
  assert build.text(config.text).null == "empty"


def test_a_net_may_be_tuned_without_its_variance(home):
  config = deepfloyd_if_train.get_config("if1,m")
  build.move_weights(config, str(home))
  config.stage.net.out_channels = 3
  config.sampling.step.kind = "ancestral"
  stage = build.stage(config.stage)
  assert not stage.learns_variance
  stage.check_sampling(build.sampling(config.sampling))
  config.sampling.step.kind = "ancestral_learned"
  with pytest.raises(ValueError, match="expected a net with out_channels 6"):
    stage.check_sampling(build.sampling(config.sampling))
