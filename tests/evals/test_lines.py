"""The file of results: one line per id."""

import pytest
from etils import epath

from imagen_jax.evals import lines


def test_a_line_replaces_the_line_with_its_id(tmp_path):
  path = epath.Path(tmp_path / "new" / lines.FILE)
  assert lines.read(path) == {}
  for id_, value in (("a", 1), ("b", 2), ("a", 3)):
    lines.add(path, {"id": id_, "value": value})
  assert path.read_text().splitlines() == [
    '{"id": "a", "value": 3}',
    '{"id": "b", "value": 2}',
  ]
  assert lines.read(path)["b"]["value"] == 2


@pytest.mark.parametrize(
  ("line", "said"),
  [
    ("{", "line 2 of {path} is not JSON"),
    ("[]", "line 2 of {path} has no id"),
    ('{"id": 3}', "line 2 of {path} has no id"),
  ],
)
def test_a_foreign_file_is_kept(tmp_path, line, said):
  path = epath.Path(tmp_path / lines.FILE)
  text = f'{{"id": "a"}}\n{line}\n'
  path.write_text(text)
  with pytest.raises(ValueError, match=said.format(path=path)):
    lines.add(path, {"id": "b"})
  assert path.read_text() == text


def test_a_checksum_ignores_the_order_of_keys():
  one, two = {"a": 1, "b": 2}, {"b": 2, "a": 1}
  assert lines.checksum(one) == lines.checksum(two)
  assert lines.checksum(one) != lines.checksum({"a": 1, "b": 3})
