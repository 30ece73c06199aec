"""The folder of a Hugging Face model: config.json, model.safetensors, and the tokenizer's files."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline_local import atomic
from pipeline_local.errors import UserError
from pipeline_local.models.backbone import Language

CONFIG = "config.json"


def published(
    language: Language, state: Mapping[str, Tensor], end_token: int | None = None
) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    """Returns the weights and the files, by name, of a model as others load it.

    A matrix that is tied is there once. Where the embedding is still an earlier copy of the
    unembedding, both are there, and the configuration ties them no more.

    Args:
        language: what is known of the model.
        state: all its weights.
        end_token: the token that ends a document in its data, at which `generate` of others is to
            stop, too; None: nobody knows it.
    """
    state, facts = dict(state), json.loads(language.files[CONFIG])
    if language.tied:
        embedding, unembedding = language.tied
        if torch.equal(state[embedding], state[unembedding]):
            del state[unembedding]
        else:
            facts["tie_word_embeddings"] = False
    if end_token is not None and end_token not in _listed(facts.get("eos_token_id")):
        facts["eos_token_id"] = end_token
    texts = {**language.files, CONFIG: json.dumps(facts, indent=2, sort_keys=True) + "\n"}
    return state, {name: text.encode() for name, text in texts.items()}


def _listed(tokens: int | list[int] | None) -> list[int | None]:
    """A configuration may name several end tokens, one, or none."""
    return [*tokens] if isinstance(tokens, list) else [tokens]


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
                atomic.sync(path)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output: {folder} cannot be written ({error}); name another") from None
