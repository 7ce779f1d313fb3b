"""The verb evaluate with the metrics of CLIP."""

import hashlib
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest
from absl import logging

from imagen_jax import jobs, scoring
from imagen_jax.data.source import load_source
from imagen_jax.evals import lines
from imagen_jax.evals.clip_features import ClipFeatures
from imagen_jax.evals.clip_score import clip_score
from imagen_jax.evals.cmmd import cmmd
from imagen_jax.evals.drawn import real_image
from imagen_jax.interop import clip, published

HELPER = pathlib.Path(__file__).parents[1] / "evals" / "clip_folder.py"
write_clip = runpy.run_path(str(HELPER))["write_clip"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_clip(tmp_path_factory.mktemp("weights") / "clip")


@pytest.fixture
def args(config, photos, folder, monkeypatch):
  monkeypatch.setattr(logging, "warning", lambda *args: None)  # of cut texts
  return [
    f"--config={config}",
    f"--dataset={photos}",
    "--split=train",
    "--num_images=8",
    f"--clip={folder}",
    "--batch_size=8",
  ]


def test_score_and_cmmd_resumed(
  evaluate, args, photos, folder, tmp_path, requests, monkeypatch
):
  outdir, planned, plan = tmp_path / "out", [], jobs.plan
  monkeypatch.setattr(
    jobs, "plan", lambda *a, **k: planned.append(plan(*a, **k)) or planned[-1]
  )
  with monkeypatch.context() as patch:  # ends after the features of samples
    patch.setattr(scoring, "clip_score", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      evaluate(*args, "--metrics=clip", f"--outdir={outdir}")
  out, err, code = evaluate(*args, "--metrics=cmmd,clip", f"--outdir={outdir}")
  assert (err, code) == ("", None), out
  assert len(requests) == 1  # no image is sampled again
  assert "clip of real images 12/12" in out and "clip of samples" not in out
  report = json.loads((outdir / "train.json").read_text())

  # From the same images and captions.
  where = published.resolve(str(folder))
  nets = clip.towers(where)
  params = clip.load_towers(where, nets.shapes)
  features = ClipFeatures(nets.text, nets.image, lambda: params, None, "", "")
  listed = json.loads((outdir / "train-captions.json").read_text())
  source = load_source(str(photos), "train", "", features=("image",))
  real = np.stack([real_image(source[i], 16) for i in range(12)])
  parts = [features.extractor.compute(x) for x in (real[:8], real[8:])]
  real = np.concatenate(parts)
  made = np.stack([jobs.read_image(path) for path in planned[-1].paths])
  made = features.extractor.compute(made)
  # photo 0 to photo 11, by their characters.
  texts = [caption.replace(" ", "").ljust(7) for caption in listed["captions"]]
  ids = np.array([[ord(c) - 33 for c in text] for text in texts])
  ids = np.pad(ids, [(0, 0), (1, 1)], constant_values=49407)
  ids[:, 0], ids[ids < 0] = 49406, 49407
  counts = np.array([len(text.strip()) + 2 for text in texts])
  mask = np.arange(9) < counts[:, None]
  rows = jax.jit(nets.text.apply)({"params": params["text"]}, ids, mask)
  found = report["cmmd"]
  assert found["distance"] == pytest.approx(cmmd(made, real), rel=1e-4)
  assert found["num_images"] == [8, 12] and found["model"] == "ViT-32/5@23px"
  expected, found = clip_score(made, np.asarray(rows)), report["clip"]
  for key in ("score", "standard_error", "shuffled"):
    assert found[key] == pytest.approx(getattr(expected, key), abs=1e-6), key
  assert found["score"] != found["shuffled"] and found["num_images"] == 8
  assert found["tokens"] == 9 and found["captions_cut"] == 0
  digest = hashlib.sha256((where / "model.safetensors").read_bytes())
  assert found["weights"] == report["cmmd"]["weights"] == digest.hexdigest()
  (line,) = lines.read(outdir / lines.FILE).values()
  assert line["clip"] == found


def test_long_captions_are_counted(evaluate, args, tmp_path, requests):
  out, err, code = evaluate(
    *args, "--template=a {} of it", "--metrics=clip", f"--outdir={tmp_path}"
  )
  assert (err, code) == ("", None), out
  report = json.loads((tmp_path / "train.json").read_text())
  assert report["clip"]["captions_cut"] == 8
  assert "cmmd" not in report


@pytest.mark.parametrize(
  ("more", "said"),
  [
    (["--clip="], "--metrics has clip, which needs --clip and a cascade with"),
    (["--clip={none}"], "weights {none} are no folder, expected one with"),
    (["--num_images=100001"], "--metrics has cmmd of 100001 images, expected "),
  ],
)  # fmt: skip
def test_bad_input_is_one_line(evaluate, args, tmp_path, more, said):
  none = tmp_path / "none"
  _, err, code = evaluate(
    *args,
    "--metrics=clip,cmmd",
    f"--outdir={tmp_path}/out",
    *(text.format(none=none) for text in more),
  )
  assert err.startswith("error: " + said.format(none=none)), err
  assert (code, err.count("\n")) == (1, 1)
  assert not (tmp_path / "out").exists()


def test_a_missing_vocabulary_is_named(evaluate, args, folder, tmp_path):
  for name in ("config.json", "model.safetensors"):
    (tmp_path / name).symlink_to(folder / name)
  _, err, code = evaluate(
    *args, f"--clip={tmp_path}", f"--outdir={tmp_path}/out"
  )
  assert code == 1
  assert err.startswith(f"error: vocabulary {tmp_path}/tokenizer.json cannot")
