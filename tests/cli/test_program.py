"""How a program ends by what its main raises."""

import jax
import pytest

from imagen_jax.cli import program

GLOO = "UNKNOWN: Gloo AllGather failed: [pair.cc:538] Read error: reset by peer"
JaxError = jax.errors.JaxRuntimeError


@pytest.mark.parametrize(
  "many,error,code",
  [
    (True, JaxError("INTERNAL: Gloo all-reduce failed"), program.LOST),
    (True, ValueError(GLOO), program.LOST),  # of reading what JAX computed
    (True, ValueError("--seed is -1, expected at least 0"), 1),
    (True, ValueError("UNet: 3 rows, expected 4"), 1),
    (False, ValueError(GLOO), 1),
  ],
)
def test_who_lost_another_is_told_apart(monkeypatch, capsys, many, error, code):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: many)
  with pytest.raises(SystemExit) as end, program.as_exit_codes():
    raise error
  assert end.value.code == code
  said = capsys.readouterr().err
  assert said.startswith("error: ")
  assert ("perhaps because a process ended" in said) == (code == program.LOST)
