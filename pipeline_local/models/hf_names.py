"""The names of a language model's tensors, where a published state dict has others."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline_local.errors import UserError


class Adopt:
    """Brings a published state dict into the model's own names.

    Args:
        model: on the meta device.
        matrices: the names of the embedding's matrix and of the unembedding's.
        tied: whether the two are one.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 (transformers is untyped)
        matrices: tuple[str, str],
        tied: bool,
    ) -> None:
        self._model = model
        self._prefix = f"{model.base_model_prefix}."
        self._names = set(model.state_dict())
        patterns = {*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"}
        if model.config.model_type == "gpt2":
            patterns |= {r"attn\.(masked_)?bias$"}  # causal masks of earlier versions
        self._ignored = [re.compile(pattern) for pattern in patterns]
        self._embedding, self._unembedding = matrices
        self._tied = tied

    def __call__(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """The state dict under the model's names, and what was made of it."""
        notes = []
        renamings = self._renamings()
        found = {self._named(name, renamings): value for name, value in state.items()}
        for name in [name for name in found if name not in self._names]:
            if any(pattern.search(name) for pattern in self._ignored):
                del found[name]
        one, other = self._embedding, self._unembedding
        if one in found and other not in found:
            found[other] = found[one]
            if not self._tied:
                notes.append(f"{other} is not there, and starts as a copy of {one}")
        if self._tied and one in found and not torch.equal(found[one], found[other]):
            raise UserError(
                f"model.weights: {one} and {other} differ, and the model ties them; set"
                f" model.tie_word_embeddings=false"
            )
        return found, notes

    def _renamings(self) -> list[Any]:
        """What transformers makes of names on loading: some are saved under earlier ones."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        every = get_model_conversion_mapping(self._model)
        return [each for each in every if isinstance(each, WeightRenaming)]

    def _named(self, name: str, renamings: Sequence[Any]) -> str:
        if name in self._names:
            return name
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        inside = self._prefix + name
        return inside if name not in self._names and inside in self._names else name
