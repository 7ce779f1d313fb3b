"""The precision of products of float32, which TPUs and GPUs round otherwise."""

import jax
import jax.numpy as jnp
import pytest
from jax.lax import Precision

from imagen_jax.nets.efficient_unet import BlockSpec, EfficientUNet
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.nets.unet import UNet
from imagen_jax.text.describe import Describer
from imagen_jax.types import Conditioning, TextEmbedding

PRODUCTS = ("dot_general", "conv_general_dilated")
# A head is the only product of float32 in a net of bfloat16.
NETS = {
  "unet": UNet(
    image_size=8, embed_dim=8, channel_mult=(1, 2), num_res_blocks=2,
    attn_resolutions=(4,), text_cross_attn_res=(4,), per_head_channels=8,
    text_width=8, norm_groups=4, remat=("full", "none"), scan=True,
  ),
  "efficient": EfficientUNet(
    blocks=(BlockSpec(8, num_res_blocks=2, text_cross_attention=True),),
    embed_dim=8, text_width=8, norm_groups=4, scan=True,
  ),
}  # fmt: skip
T5 = T5Encoder(
  vocab_size=16, emb_dim=8, num_heads=2, num_encoder_layers=2, head_dim=4,
  mlp_dim=16, scan=True,
)  # fmt: skip


def float32_precisions(equations, call, *args):
  """The precisions of all products of float32 in the gradient of a call."""
  loss = lambda *given: jnp.sum(call(*given) ** 2)
  jaxpr = jax.make_jaxpr(jax.grad(loss))(*args).jaxpr
  found = [
    equation.params["precision"]
    for equation in equations(jaxpr)
    if equation.primitive.name in PRODUCTS
    and all(v.aval.dtype == jnp.float32 for v in equation.invars[:2])
  ]
  assert found
  return {p if isinstance(p, tuple) else (p, p) for p in found}, len(found)


def unet_gradient(equations, net):
  text = TextEmbedding(jnp.ones((2, 3, 6)), jnp.ones((2, 3), bool))
  inputs = jnp.ones((2, 8, 8, 3)), jnp.ones(2), Conditioning(text)
  params = jax.eval_shape(net.init, jax.random.key(0), *inputs)
  return float32_precisions(equations, net.apply, params, *inputs)


@pytest.mark.parametrize("name", NETS)
def test_float32_means_all_of_its_bits(equations, name):
  found, _ = unet_gradient(equations, NETS[name])
  assert found == {(Precision.HIGHEST, Precision.HIGHEST)}


@pytest.mark.parametrize("name", NETS)
def test_a_net_may_be_faster_but_not_its_head(equations, name):
  fast = NETS[name].clone(precision="default", dtype=jnp.bfloat16)
  found, count = unet_gradient(equations, fast)
  assert found == {(Precision.HIGHEST, Precision.HIGHEST)}
  assert count == 3  # the head, and its two gradients
  fast = NETS[name].clone(precision="high")
  found, _ = unet_gradient(equations, fast)
  assert found == {
    (Precision.HIGH, Precision.HIGH),
    (Precision.HIGHEST, Precision.HIGHEST),
  }


@pytest.mark.parametrize(
  ("name", "precision"), [("highest", "HIGHEST"), ("default", "DEFAULT")]
)
def test_t5(equations, name, precision):
  net, ids = T5.clone(precision=name), jnp.ones((2, 3), jnp.int32)
  params = jax.eval_shape(net.init, jax.random.key(0), ids, ids > 0)
  found, _ = float32_precisions(equations, net.apply, params, ids, ids > 0)
  assert found == {(Precision[precision],) * 2}


def test_what_pretrains_t5(equations):
  net, ids = Describer(T5), jnp.ones((2, 3), jnp.int32)
  params = jax.eval_shape(net.init, jax.random.key(0), ids, ids > 0, ids)
  found, count = float32_precisions(
    equations, net.apply, params, ids, ids > 0, ids
  )
  assert found == {(Precision.HIGHEST,) * 2}
  assert count > 30  # the decoder's too
