"""Packaging of localist_jax; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

JAX = "jax>=0.10.2"

setup(
    name="localist_jax",
    version="0.1.0",
    description="Localist language models with recruitment learning, in JAX and Flax",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["localist_jax*", "experiments*", "benchmarks*", "proofs_check*"]),
    package_data={"localist_jax": ["py.typed"], "localist_jax.report": ["page.css"]},
    install_requires=[
        JAX,
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "chex>=0.1.92",
        "ml-collections>=1.1.0",
        "tensorboard>=2.21",
        "tensorboardX>=2.6.5",  # writes TensorBoard files without TensorFlow
        "absl-py>=2.1",
        "grain>=0.2.18",
        "tokenizers>=0.23",
        "safetensors>=0.8",
        "gguf>=0.19",  # dequantises the tensors of GGUF files
        "jinja2>=3.1.6",  # chat templates, sandboxed; older versions have known escapes
        "jaxtyping>=0.3.11",
        "numpy>=2.0",
        "scipy>=1.13",
        "matplotlib>=3.9",
        "pyyaml>=6.0.4",
        "z3-solver>=5.4.1",  # proves rule sets consistent
        "llguidance>=1.9.1",  # regular expressions and grammars over tokens
        "google-re2>=1.1.20251105",  # the independent checker's: linear time
        "confusable-homoglyphs>=3.3.1",  # Unicode's look-alikes, for enforcement
        "anyascii>=0.3.3",  # the independent checker's: what a Latin letter is a variant of
    ],
    extras_require={
        "cuda": [f"jax[cuda12]{JAX.removeprefix('jax')}"],
        "tpu": [f"jax[tpu]{JAX.removeprefix('jax')}"],
        "hub": ["datasets>=3.0"],
        "files": ["pyarrow>=17.0", "zstandard>=0.23"],  # parquet and zstd as a corpus
        "benchmarks": ["torch>=2.5"],  # PyTorch is a peer to compare with, never a dependency
        "parity": ["torch>=2.13", "transformers>=5.24"],  # what adopted models are compared with, in tests
        "docs": ["sphinx>=9.0", "myst-nb>=1.4", "furo>=2025.12"],  # `make docs`
        "dev": [
            "pytest>=8.3",
            "hypothesis>=6.170",
            "pytest-xdist>=3.6",
            "pytest-timeout>=2.3",
            "beartype>=0.23",
            "zstandard>=0.23",
            "ruff>=0.15",
            "mypy>=1.18",
        ],
    },
    entry_points={"console_scripts": ["localist=localist_jax.__main__:main"]},
)
