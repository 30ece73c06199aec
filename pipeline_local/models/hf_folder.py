"""The folder of a Hugging Face model: config.json, model.safetensors, and the tokenizer's files."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline_local.errors import UserError


def write(folder: Path, state: Mapping[str, Tensor], files: Mapping[str, bytes]) -> None:
    """Writes a new folder, which appears whole or not at all.

    Args:
        folder: it must not exist.
        state: the weights, by their names in the model.
        files: what else belongs into it, by name.

    Raises:
        UserError: it cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    tensors = {name: value.contiguous() for name, value in state.items()}
    try:
        temporary.mkdir(parents=True)
        try:
            save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            # safetensors lets nobody else read its files
            (temporary / "model.safetensors").chmod(temporary.stat().st_mode & 0o666)
            for path in [*temporary.iterdir(), temporary]:
                _to_disk(path)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output: {folder} cannot be written ({error}); name another") from None


def _to_disk(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
