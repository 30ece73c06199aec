"""The folder of a Hugging Face model: config.json, model.safetensors, and the tokenizer's files."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline_local.errors import UserError
from pipeline_local.values import expanded

_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja"),
)
_ALONE = b'{"tokenizer_class": "PreTrainedTokenizerFast"}\n'
"""The tokenizer_config.json of a tokenizer.json that stands alone."""


def tokenizer_files(tokenizer: object) -> dict[str, bytes]:
    """What an export holds of a run's tokenizer, by name.

    Args:
        tokenizer: as the configuration names it: a folder, or a tokenizer.json; anything else, such
            as "bytes", has no files.

    Raises:
        UserError: it is not there any more.
    """
    if tokenizer is None or tokenizer == "bytes":
        return {}
    path = expanded(str(tokenizer))
    try:
        if path.is_dir():
            present = [path / name for name in _TOKENIZER if (path / name).is_file()]
            return {file.name: file.read_bytes() for file in present}
        return {"tokenizer.json": path.read_bytes(), "tokenizer_config.json": _ALONE}
    except OSError as error:
        raise UserError(
            f"data.tokenizer: {path} cannot be read ({error.strerror}); put it back, or export the"
            f" weights alone with --output FILE.safetensors"
        ) from None


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
