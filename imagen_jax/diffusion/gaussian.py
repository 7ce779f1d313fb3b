"""The Gaussian diffusion process in log-SNR (App. A, Eqs. 3-4).

The variance sigma_{t|s}^2 = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2 subtracts
because eps is independent of z_s in z_t = (alpha_t/alpha_s) z_s +
sigma_{t|s} eps. The two variances (alpha_t/alpha_s)^2 sigma_s^2 and
sigma_{t|s}^2 must add up to the sigma_t^2 of q(z_t|x).

In all functions s < t, so logsnr_s > logsnr_t. A logsnr is a scalar or [B]. The
arrays x, eps, z_t and z_s are [B, ...]. Results are float32.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from imagen_jax.diffusion.schedules import alpha_sigma


def per_example(value: jax.Array, like: jax.Array) -> jax.Array:
  """Reshapes a scalar or [B] to float32 that broadcasts against `like`."""
  value = jnp.asarray(value, jnp.float32)
  assert value.ndim <= 1, f"expected a scalar or [B], got {value.shape}"
  return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws N(0, I) of shape [B, *shape]; row i depends on keys[i] alone."""
  return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def q_sample(x: jax.Array, eps: jax.Array, logsnr: jax.Array) -> jax.Array:
  """Returns z_t = alpha_t x + sigma_t eps, a draw of q(z_t|x) (Eq. 3)."""
  alpha, sigma = alpha_sigma(per_example(logsnr, x))
  return alpha * x + sigma * eps


def transition(
  z_s: jax.Array, *, logsnr_s: jax.Array, logsnr_t: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns mean and variance of q(z_t|z_s) (Eq. 3).

  The mean is (alpha_t/alpha_s) z_s and the variance is
  sigma_{t|s}^2 = (1 - e^{logsnr_t - logsnr_s}) sigma_t^2.
  """
  logsnr_s, logsnr_t = per_example(logsnr_s, z_s), per_example(logsnr_t, z_s)
  ratio = jnp.exp((log_sigmoid(logsnr_t) - log_sigmoid(logsnr_s)) / 2)
  var = -jnp.expm1(logsnr_t - logsnr_s) * jax.nn.sigmoid(-logsnr_t)
  return ratio * z_s, var


def posterior(
  z_t: jax.Array, x: jax.Array, *, logsnr_s: jax.Array, logsnr_t: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns mean and variance of q(z_s|z_t,x) (App. A).

  The mean is e^d (alpha_s/alpha_t) z_t + (1 - e^d) alpha_s x, and the variance
  is (1 - e^d) sigma_s^2, with d = logsnr_t - logsnr_s.
  """
  logsnr_s, logsnr_t = per_example(logsnr_s, x), per_example(logsnr_t, x)
  alpha_s, sigma_s = alpha_sigma(logsnr_s)
  log_ratio = (log_sigmoid(logsnr_s) - log_sigmoid(logsnr_t)) / 2
  share = -jnp.expm1(logsnr_t - logsnr_s)
  mean = jnp.exp(logsnr_t - logsnr_s + log_ratio) * z_t + share * alpha_s * x
  return mean, share * sigma_s**2


def log_variances(
  *, logsnr_s: jax.Array, logsnr_t: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns log((1 - e^d) sigma_s^2) and log((1 - e^d) sigma_t^2) (App. A).

  Here d = logsnr_t - logsnr_s. They are the variances of the posterior and of
  the transition. The gamma of the ancestral sampler interpolates between them.
  """
  # Two times inside a schedule's clip have equal logsnr. The floor avoids
  # log 0 = -inf, and keeps the inverse of a variance finite.
  share = -jnp.expm1(logsnr_t - logsnr_s)
  log_share = jnp.log(jnp.maximum(share, 1e-20))
  return log_share + log_sigmoid(-logsnr_s), log_share + log_sigmoid(-logsnr_t)


def x_from_eps(eps: jax.Array, z: jax.Array, logsnr: jax.Array) -> jax.Array:
  """Computes x = (z - sigma eps) / alpha."""
  alpha, sigma = alpha_sigma(per_example(logsnr, z))
  return (z - sigma * eps) / alpha


def eps_from_x(x: jax.Array, z: jax.Array, logsnr: jax.Array) -> jax.Array:
  """Computes eps = (z - alpha x) / sigma."""
  alpha, sigma = alpha_sigma(per_example(logsnr, z))
  return (z - alpha * x) / sigma


def v_from_x_eps(x: jax.Array, eps: jax.Array, logsnr: jax.Array) -> jax.Array:
  """Computes v = alpha eps - sigma x."""
  alpha, sigma = alpha_sigma(per_example(logsnr, x))
  return alpha * eps - sigma * x


def x_from_v(v: jax.Array, z: jax.Array, logsnr: jax.Array) -> jax.Array:
  """Computes x = alpha z - sigma v."""
  alpha, sigma = alpha_sigma(per_example(logsnr, z))
  return alpha * z - sigma * v


def eps_from_v(v: jax.Array, z: jax.Array, logsnr: jax.Array) -> jax.Array:
  """Computes eps = sigma z + alpha v."""
  alpha, sigma = alpha_sigma(per_example(logsnr, z))
  return sigma * z + alpha * v


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Describes a quantity that a net can predict: eps, x or v.

  Attributes:
    name: "eps", "x" or "v".
    target: called as target(x, eps, logsnr), returns the correct output.
    to_x: called as to_x(out, z, logsnr), converts an output to x_hat.
    error_ratio: called as error_ratio(logsnr), returns
      ||target - out||^2 / ||eps - eps_hat||^2 of one x_hat.
  """

  name: str
  target: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
  to_x: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
  error_ratio: Callable[[jax.Array], jax.Array]


EPS = Prediction(
  name="eps",
  target=lambda x, eps, logsnr: jnp.asarray(eps, jnp.float32),
  to_x=x_from_eps,
  error_ratio=lambda logsnr: jnp.ones_like(logsnr, jnp.float32),
)
X = Prediction(
  name="x",
  target=lambda x, eps, logsnr: jnp.asarray(x, jnp.float32),
  to_x=lambda out, z, logsnr: jnp.asarray(out, jnp.float32),
  error_ratio=lambda logsnr: jnp.exp(-jnp.asarray(logsnr, jnp.float32)),
)
V = Prediction(
  name="v",
  target=v_from_x_eps,
  to_x=x_from_v,
  error_ratio=lambda logsnr: 1 + jnp.exp(-jnp.asarray(logsnr, jnp.float32)),
)


def squared_error(
  prediction: Prediction,
  out: jax.Array,
  x: jax.Array,
  eps: jax.Array,
  logsnr: jax.Array,
  space: Prediction = EPS,
) -> jax.Array:
  """Computes the mean squared error [B] of each example (App. A, Eq. 4).

  The error is measured in `space`. The paper's loss measures eps for every
  prediction; space=prediction gives the plain error of the output.
  """
  error = out - prediction.target(x, eps, logsnr)
  mse = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
  return mse * space.error_ratio(logsnr) / prediction.error_ratio(logsnr)
