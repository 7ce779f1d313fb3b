"""The verb prepare: its flags, a folder of odd files, processes and kills."""

import importlib
import io
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from imagen_jax import prepare
from imagen_jax.data.source import load_source
from imagen_jax.progress import Progress

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = ("a", "звезда", "星", "نجمة", "ดาว", "तारा", "⭐\u200d✨", "e\u0301")


def encode(seed=0, mode="RGB", kind="png", size=(12, 10), **options):
  """Returns an image file of random pixels."""
  shape = (size[1], size[0], 3)
  pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, kind, **options)
  return file.getvalue()


def write_folder(folder, count, size=(12, 10)):
  folder.mkdir()
  for i in range(count):
    (folder / f"{i:04}.png").write_bytes(encode(i, size=size))
    (folder / f"{i:04}.txt").write_text(f"number {i}")
  return folder


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in pathlib.Path(folder).rglob("*")
    if path.is_file()
  }


def odd_files():
  """Returns files that can be read, by name."""
  exif = Image.Exif()
  exif[0x0112] = 6
  frames = [Image.new("RGB", (9, 9), (i * 50, 0, 0)) for i in range(3)]
  more = dict(save_all=True, append_images=frames[1:])
  good = {
    "cmyk.jpg": encode(1, "CMYK", "jpeg"),
    "palette.png": encode(2, "P"),
    "grey.png": encode(3, "L"),
    "bits.png": encode(4, "1"),
    "alpha.png": encode(5, "RGBA"),
    "rotated.jpg": encode(6, kind="jpeg", exif=exif),
    "animated.gif": (b := io.BytesIO(), frames[0].save(b, "gif", **more)),
    "moving.webp": (c := io.BytesIO(), frames[1].save(c, "webp", **more)),
    "UPPER.JPEG": encode(7, kind="jpeg"),
    "a name.with 'quotes' \"and\" dots.png": encode(8),
    "a jpeg.png": encode(9, kind="jpeg"),
    "wide.bmp": encode(10, kind="bmp", size=(100, 8)),
    "星 звезда.tiff": encode(11, kind="tiff"),
    "long.png": encode(12),
  }
  good["animated.gif"], good["moving.webp"] = b.getvalue(), c.getvalue()
  return good


def bad_files():
  """Returns (file, kind of the reason why it is dropped), by name."""
  whole = encode(13, kind="jpeg", size=(64, 64))
  return {
    "cut.jpg": (whole[: len(whole) // 2], "bad image"),
    "cut.png": (encode(14)[:60], "bad image"),
    "empty.jpg": (b"", "bad image"),
    "text.jpg": (b"not an image", "bad image"),
    "page.png": (b"<html></html>", "bad image"),
    "tiny.png": (encode(15, size=(7, 90)), "small image"),
    "blank.png": (encode(16), "empty caption"),
    "latin.png": (encode(17), "not readable"),
  }


def write_odd_files(folder):
  """Writes 200 files; returns what is to be dropped and how many are kept."""
  good, bad = odd_files(), bad_files()
  texts = dict(zip(good, itertools.cycle(SCRIPTS)))
  texts["long.png"] = "word " * 3000
  texts |= dict.fromkeys(bad, "a caption") | {"blank.png": " \n\n"}
  folder.mkdir()
  for name, data in (good | {k: v for k, (v, _) in bad.items()}).items():
    (folder / name).write_bytes(data)
    (folder / name).with_suffix(".txt").write_text(texts[name])
  (folder / "latin.txt").write_bytes("é".encode("latin-1"))
  kinds = {name: kind for name, (_, kind) in bad.items()}
  for i in range(5):
    (folder / f"lonely {i}.png").write_bytes(encode(i + 20))
    (folder / f"orphan {i}.txt").write_text("a caption")
    (folder / f"twin {i}.png").write_bytes(good["grey.png"])
    (folder / f"twin {i}.txt").write_text("the same")
    kinds[f"lonely {i}.png"] = "image without a caption"
    kinds[f"orphan {i}.txt"] = "caption without an image"
    if i:
      kinds[f"twin {i}.png"] = "duplicate"
  plain = (200 - len(contents(folder))) // 2
  for i in range(plain):
    (folder / f"{i:03}.jpg").write_bytes(encode(i + 50, kind="jpeg"))
    (folder / f"{i:03}.txt").write_text(f"number {i}\nno. {i}\n")
  return kinds, len(good) + 1 + plain


def test_a_folder_of_odd_files_and_its_exact_report(tmp_path, capsys):
  kinds, kept = write_odd_files(tmp_path / "in")
  assert 199 <= len(contents(tmp_path / "in")) <= 200
  prepare.main(
    [f"--source={tmp_path}/in", f"--output={tmp_path}/out", "--per_shard=20",
     "--validation=0.1"]
  )  # fmt: skip
  lines = (tmp_path / "out" / "report.jsonl").read_text().splitlines()
  report = [json.loads(line) for line in lines]
  assert {row["key"]: row["kind"] for row in report} == kinds
  assert len(report) == len(kinds)
  reasons = {row["key"]: row["reason"] for row in report}
  assert reasons["text.jpg"] == (
    "image bytes cannot be decoded (of no known format)"
  )
  assert reasons["latin.png"] == "latin.txt is not UTF-8 text"
  assert reasons["twin 3.png"] == "the same image and caption as twin 0.png"
  sets = [
    load_source(f"{tmp_path}/out", split, "", features=("image", "caption"))
    for split in ("train", "validation")
  ]
  assert sum(map(len, sets)) == kept
  assert len(sets[1]) > 0
  captions = [text for s in sets for r in s for text in r["caption"]]
  assert {*SCRIPTS} <= {*captions}
  assert max(map(len, captions)) == len("word " * 3000) - 1
  with Image.open(tmp_path / "out" / "preview.png") as preview:
    assert preview.width == 6 * 130 - 2
  out = capsys.readouterr().out
  assert "dropped: caption without an image  5\n" in out
  assert (tmp_path / "out" / "report.txt").read_text() in out


@pytest.mark.slow
def test_what_it_writes_is_trained_on(here, tmp_path):
  write_odd_files(tmp_path / "in")
  out = tmp_path / "out"
  prepare.main(
    [f"--source={tmp_path}/in", f"--output={out}", "--validation=0.1"]
  )
  train = importlib.import_module("imagen_jax.train")
  train.main(
    [f"--config={here}/tiny.py", f"--workdir={tmp_path}/run",
     f"--config.data.name={out}",
     "--config.train.steps=1", "--nocompile_cache"]
  )  # fmt: skip
  assert (tmp_path / "run" / "metrics.jsonl").read_text().count("loss") >= 1


def test_shards_and_finish_make_the_bytes_of_one_process(tmp_path):
  folder = write_folder(tmp_path / "in", 10)
  flags = [f"--source={folder}", "--per_shard=2", "--validation=0.3"]
  prepare.main([*flags, f"--output={tmp_path}/one"])
  for i in reversed(range(8)):  # more than there are shards
    prepare.main([*flags, f"--output={tmp_path}/many", f"--shard={i}/8"])
    assert not (tmp_path / "many" / "dataset_info.json").exists()
  prepare.main([*flags, f"--output={tmp_path}/many", "--finish"])
  assert contents(tmp_path / "one") == contents(tmp_path / "many")


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "--source and --output are needed"),
    (["--output=OUT"], "--source and --output are needed"),
    (["--source=IN"], "--source and --output are needed"),
    (["--shard=8/8"], "--shard is '8/8', expected I/N with I from 0 to N - 1"),
    (["--shard=1"], "--shard is '1', expected I/N"),
    (["--shard=0/2", "--finish"], "--shard and --finish exclude each other"),
    (["--finish"], "1 of 1 shards are missing in .*OUT, the first is 0"),
    (["--at_least=score"], "--at_least is 'score', expected COLUMN:VALUE"),
    (["--at_most=s:nan"], "--at_most is 's:nan', expected COLUMN:VALUE"),
    (["--validation=1"], "validation is 1.0, expected 0 to less than 1"),
    (["--per_shard=0"], "--per_shard is 0, expected at least 1"),
    (["--threads=0"], "--threads is 0, expected at least 1"),
    (
      ["--output=IN/out"],
      "output .*IN/out is within the source .*IN, ",
    ),
    (["--output=IN/0000.png"], "IN/0000.png is a file, expected a folder"),
    (["--source=GONE"], "source .*GONE does not exist"),
  ],
)
def test_bad_flags_are_one_sentence(tmp_path, flags, message):
  write_folder(tmp_path / "IN", 1)
  if not flags or flags[0][:8] not in ("--output", "--source"):
    flags = ["--source=IN", "--output=OUT", *flags] if flags else []
  elif "needed" not in message:
    flags = ["--source=IN", "--output=OUT", *flags]
  flags = [flag.replace("=IN", f"={tmp_path}/IN") for flag in flags]
  flags = [flag.replace("=OUT", f"={tmp_path}/OUT") for flag in flags]
  flags = [flag.replace("=GONE", f"={tmp_path}/GONE") for flag in flags]
  with pytest.raises(ValueError, match=message):
    prepare.main(flags)


def test_the_first_shard_that_fails_ends_the_others():
  ended = []

  def write(i, stop):
    if i == 1:
      raise ValueError("shard 1 cannot be written: full")
    assert stop.wait(60)
    ended.append(i)

  with pytest.raises(ValueError, match="shard 1 cannot be written"):
    prepare.write_all(write, range(50), 2, Progress("prepare", 50))
  assert len(ended) < 3


def start(*flags, **variables):
  env = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"}
  return subprocess.Popen(
    [sys.executable, "-m", "imagen_jax.prepare", *flags],
    cwd=ROOT, env=env | variables, stdout=subprocess.PIPE,
    stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


@pytest.mark.slow
def test_a_bucket_gets_the_bytes_of_a_disk(tmp_path, storage):
  folder = write_folder(tmp_path / "in", 6)
  (folder / "0005.txt").write_text("number 4")
  (folder / "0005.png").write_bytes((folder / "0004.png").read_bytes())
  flags = ["--per_shard=2", "--validation=0.3"]
  (folder / "sub").mkdir()
  (folder / "0003.png").rename(folder / "sub" / "0003.png")
  (folder / "0003.txt").rename(folder / "sub" / "0003.txt")
  prepare.main([f"--source={folder}", f"--output={tmp_path}/out", *flags])
  for name, data in contents(folder).items():
    storage.put("bucket", f"mine/{name}", data)
  flags += ["--source=gs://bucket/mine", "--output=gs://bucket/out"]
  for _ in range(2):  # the second time there is nothing to do
    process = start(*flags, **storage.env)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
  found = {
    name.removeprefix("out/"): held.data
    for name, held in storage.buckets["bucket"].items()
    if name.startswith("out/")
  }
  assert found == contents(tmp_path / "out")


@pytest.mark.slow
def test_killed_at_random_moments_and_two_at_once(tmp_path):
  """Two processes share the shards; each is killed again and again."""
  folder = write_folder(tmp_path / "in", 400, size=(200, 200))
  flags = [f"--source={folder}", "--per_shard=4", "--threads=1"]
  prepare.main([*flags, f"--output={tmp_path}/one"])
  flags.append(f"--output={tmp_path}/two")
  rng, shards = np.random.default_rng(0), tmp_path / "two" / "shards"
  kills = 0
  while kills < 4:
    both = [start(*flags, f"--shard={i}/2") for i in range(2)]
    before = len([*shards.glob("*")])
    while len([*shards.glob("*")]) < before + 5 and both[0].poll() is None:
      time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.05))
    for process in both:
      if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        kills += 1
      process.communicate()
    if len([*shards.glob("*")]) == 100:
      break
  assert kills >= 2
  for i in range(2):
    assert start(*flags, f"--shard={i}/2").wait() == 0
  assert start(*flags, "--finish").wait() == 0
  assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(tmp_path):
  """Files that cannot grow, as on a full disk, by ulimit."""
  folder = write_folder(tmp_path / "in", 4, size=(300, 300))
  flags = f"--source={folder} --output={tmp_path}/out"
  command = f"ulimit -f 400; {sys.executable} -m imagen_jax.prepare {flags}"
  env = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"}
  done = subprocess.run(
    ["bash", "-c", command], env=env, capture_output=True, text=True
  )
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: ")
  assert "cannot be written: " in last
  names = [*contents(tmp_path / "out")]
  assert not any("train" in name or ".part" in name for name in names)
  prepare.main(flags.split())
  assert len(load_source(f"{tmp_path}/out", "train", "")) == 4
