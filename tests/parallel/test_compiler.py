"""Compiler options: where they apply, and that they change no result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.parallel import compiler

(OPTION,) = compiler._CPU


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")


def test_options_are_a_cpus(monkeypatch):
  known = compiler.options()
  assert known in ({}, compiler._CPU)
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert compiler.options() == {}


def test_an_option_of_the_user_stays(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=/tmp --{OPTION}=")
  assert compiler.options() == {}


@pytest.mark.parametrize(
  "wrong", [{"xla_cpu_nonsense": "1"}, {OPTION: "NONSENSE"}]
)
def test_what_jaxlib_does_not_know_is_left_out(monkeypatch, wrong):
  monkeypatch.setattr(compiler, "_CPU", wrong)
  assert compiler.options() == {}
  assert compiler.jit(lambda x: x + 1)(1) == 2


def test_programs_are_compiled_with_them(monkeypatch):
  """An option that any jaxlib knows shows that it arrives."""
  monkeypatch.setattr(compiler, "_CPU", {"xla_cpu_enable_fast_math": "maybe"})
  monkeypatch.setattr(compiler, "_is_known", lambda *_: True)
  with pytest.raises(jax.errors.JaxRuntimeError, match="fast_math"):
    compiler.jit(lambda x: x + 1)(1)


def test_it_is_jit_also_within_jit_and_gradients():
  x = jnp.arange(6.0).reshape(2, 3)
  calls = []

  def scaled(x, factor, *, power):
    calls.append(None)
    return (factor * x**power).sum()

  found = compiler.jit(scaled, static_argnames="power")
  assert found(x, 2, power=2) == found(x, 2, power=2) == 110
  assert len(calls) == 1
  assert found.__wrapped__ is scaled
  assert jax.jit(lambda x: found(x, 2, power=2) + 1)(x) == 111
  assert jax.jit(lambda: found(1.0, 2, power=2))() == 2
  slope = jax.grad(lambda x: found(x, 2, power=2))(x)
  np.testing.assert_array_equal(slope, 4 * x)
  np.testing.assert_array_equal(
    jax.vmap(lambda x: found(x, 2, power=2))(x), [10, 100]
  )
