"""Counts of operations against closed forms, and against XLA's own."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from imagen_jax.parallel.flops import count_flops


def zeros(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


SQUARE = zeros(8, 8)
ONE = 2 * 8**3  # a product of two of them


def convolve(x, kernel, strides=(1, 1), padding="SAME", **settings):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    **settings,
  )


def xla_flops(fn, *args):
  return jax.jit(fn).lower(*args).cost_analysis()["flops"]


def test_a_matrix_product():
  assert count_flops(jnp.matmul, zeros(3, 5), zeros(5, 7)) == 2 * 3 * 5 * 7


def test_a_batched_product_over_two_axes():
  product = lambda a, b: jnp.einsum("bikl,bklj->bij", a, b)
  flops = count_flops(product, zeros(2, 3, 4, 5), zeros(2, 4, 5, 6))
  assert flops == 2 * (2 * 3 * 6) * (4 * 5)


def test_elementwise_operations_do_not_count():
  assert count_flops(lambda x: jnp.exp(x + 1).sum(), SQUARE) == 0


@pytest.mark.parametrize(
  ("settings", "channels", "outputs", "terms"),
  [
    ({}, 6, 2 * 8 * 12 * 10, 3 * 3 * 6),
    ({"strides": (2, 2)}, 6, 2 * 4 * 6 * 10, 3 * 3 * 6),
    ({"padding": "VALID"}, 6, 2 * 6 * 10 * 10, 3 * 3 * 6),
    ({"rhs_dilation": (2, 2)}, 6, 2 * 8 * 12 * 10, 3 * 3 * 6),
    ({"feature_group_count": 2}, 3, 2 * 8 * 12 * 10, 3 * 3 * 3),
    ({"batch_group_count": 2}, 6, 1 * 8 * 12 * 10, 3 * 3 * 6),
  ],
)
def test_a_convolution(settings, channels, outputs, terms):
  x, kernel = zeros(2, 8, 12, 6), zeros(3, 3, channels, 10)
  flops = count_flops(lambda x, k: convolve(x, k, **settings), x, kernel)
  assert flops == 2 * outputs * terms


def test_a_transposed_convolution_counts_as_the_one_it_transposes():
  transposed = lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME")
  flops = count_flops(transposed, zeros(2, 4, 6, 10), zeros(3, 3, 10, 6))
  assert flops == 2 * (2 * 4 * 6 * 10) * (3 * 3 * 6)


@pytest.mark.parametrize(
  "settings", [{}, {"strides": (2, 2)}, {"feature_group_count": 2}]
)
def test_the_gradient_of_a_convolution_is_twice_as_much_again(settings):
  groups = settings.get("feature_group_count", 1)
  args = zeros(2, 8, 12, 6), zeros(3, 3, 6 // groups, 10)
  loss = lambda x, k: (convolve(x, k, **settings) ** 2).sum()
  forward = count_flops(loss, *args)
  assert count_flops(jax.grad(loss, (0, 1)), *args) == 3 * forward


def chain(x, a, b):
  return jnp.tanh(jnp.tanh(x @ a) @ b)


def test_the_gradient_of_a_chain_is_twice_as_much_again():
  loss = lambda *args: chain(*args).sum()
  args = SQUARE, SQUARE, SQUARE
  assert count_flops(chain, *args) == 2 * ONE
  assert count_flops(jax.grad(loss, (0, 1, 2)), *args) == 6 * ONE
  assert count_flops(jax.grad(loss, (1, 2)), *args) == 5 * ONE


def test_remat_computes_the_forward_pass_again():
  loss = lambda *args: jax.checkpoint(chain)(*args).sum()
  gradient = jax.grad(loss, (0, 1, 2))
  assert count_flops(gradient, SQUARE, SQUARE, SQUARE) == 8 * ONE


def repeated(fn, length):
  return lambda x: lax.scan(lambda x, _: (fn(x), None), x, None, length)[0]


@pytest.mark.parametrize("length", [1, 5])
def test_a_scan_counts_as_often_as_it_runs(length):
  def loss(x, a):
    return (repeated(lambda x: x @ a, length)(x) ** 2).sum()

  assert count_flops(loss, SQUARE, SQUARE) == length * ONE
  gradient = jax.grad(loss, (0, 1))
  assert count_flops(gradient, SQUARE, SQUARE) == 3 * length * ONE


def test_scans_within_scans_multiply():
  twice = repeated(repeated(lambda x: x @ x, 3), 5)
  assert count_flops(twice, SQUARE) == 15 * ONE


def test_a_loop_of_known_length_is_a_scan():
  repeat = lambda x: lax.fori_loop(0, 7, lambda _, x: x @ x, x)
  assert count_flops(repeat, SQUARE) == 7 * ONE


def test_a_cond_costs_its_dearest_branch():
  branches = [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x]
  switch = lambda i, x: lax.switch(i, branches, x)
  assert count_flops(switch, 1, SQUARE) == 2 * ONE


def test_jit_within_jit_counts_once():
  inner = jax.jit(lambda x: x @ x)
  outer = jax.jit(lambda x: inner(x) + inner(x @ x))
  assert count_flops(outer, SQUARE) == 3 * ONE


def test_functions_with_their_own_derivative_count_once():
  jvp = jax.custom_jvp(lambda x: x @ x)
  jvp.defjvp(lambda x, t: (x[0] @ x[0], t[0] @ x[0]))
  vjp = jax.custom_vjp(lambda x: x @ x)
  vjp.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x,))
  assert count_flops(lambda x: jvp(x) + vjp(x), SQUARE) == 2 * ONE


def test_a_shard_map_counts_on_all_devices():
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
  rows, whole = PartitionSpec("a"), PartitionSpec()
  product = jax.shard_map(
    jnp.matmul,
    mesh=mesh,
    in_specs=(rows, whole),
    out_specs=rows,
    axis_names={"a"},
  )
  assert count_flops(product, SQUARE, SQUARE) == ONE


def test_products_in_a_while_loop_are_refused():
  loop = lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)
  with pytest.raises(
    ValueError,
    match="^count_flops cannot know how often the products in a while run, "
    "expected a scan, or a fori_loop of known length$",
  ):
    count_flops(loop, SQUARE)
  halve = lambda x: lax.while_loop(lambda x: x.sum() > 9, lambda x: x / 2, x)
  assert count_flops(lambda x: halve(x @ x), SQUARE) == ONE


def test_xla_counts_the_same_in_a_net_without_loops():
  def loss(params, x):
    for kernel in params[:2]:
      x = jax.nn.relu(convolve(x, kernel, (2, 2), "VALID"))
    x = x.reshape(x.shape[0], -1)
    return (jnp.tanh(x @ params[2]) @ params[3] ** 2).sum()

  params = [zeros(2, 2, 16, 32), zeros(2, 2, 32, 32), zeros(512, 64)]
  params.append(zeros(64, 128))
  args = params, zeros(8, 16, 16, 16)
  for fn in (loss, jax.grad(loss)):
    xla = xla_flops(fn, *args)
    assert count_flops(fn, *args) == pytest.approx(xla, rel=0.03)
