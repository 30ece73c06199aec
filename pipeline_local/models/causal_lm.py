"""Hugging Face's decoder-only language models: embedding, each decoder layer, and unembedding.

The layers are transformers' own. What its models compute once for all layers (positions, rotary
embeddings, the causal mask) each block computes for itself, by transformers' own functions. Whether
the blocks in order are the model is found out for each configuration, on the meta device.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pipeline_local.errors import UserError, few, first_line
from pipeline_local.models import hf_config
from pipeline_local.models.backbone import Backbone, Block, Language, unfilled
from pipeline_local.models.embedding import Embedding, TiedEmbedding, positions
from pipeline_local.models.hf_names import Adopt
from pipeline_local.models.symbolic import Symbolic
from pipeline_local.models.unembedding import Unembedding

TESTED = (
    *("arcee", "exaone4", "gemma", "gemma3_text", "glm", "gpt2", "gpt_neox", "helium", "llama"),
    *("ministral3", "mistral", "olmo", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "seed_oss"),
    *("smollm3", "stablelm", "starcoder2"),
)
"""The architectures that the tests compare with the uncut model."""
_MIXTURE = re.compile(r"Moe|MoE|MOE|Expert|Router")
"""Names of classes that route tokens, and need a loss that balances them."""
_ATTENTION = ("full_attention", "sliding_attention")


class Layer(nn.Module):
    """A decoder layer with all that it needs: activations [B, T, d] -> activations.

    Args:
        name: of the layer in its list.
        layer: transformers' own.
        config: of the model.
        rotary: gives the rotary embeddings; None: there are none.
        kind: of its attention, one of "full_attention" and "sliding_attention".
    """

    layer: nn.Module

    def __init__(
        self,
        name: str,
        layer: nn.Module,
        config: Any,  # noqa: ANN401 (transformers' own class)
        rotary: nn.Module | None,
        kind: str,
    ) -> None:
        super().__init__()
        from transformers import masking_utils

        self.add_module(name, layer)
        # by one name in all blocks, which share their compiled graphs
        self.__dict__["layer"] = layer
        self.rotary = rotary
        self._kind, self._config = kind, config
        self._by_kind = rotary is not None and "layer_type" in _parameters(rotary)
        self._takes_positions = "position_ids" in _parameters(layer)
        sliding = kind == "sliding_attention"
        self._mask: Callable[..., Tensor | None] = (
            masking_utils.create_sliding_window_causal_mask
            if sliding
            else masking_utils.create_causal_mask
        )

    def forward(self, x: Tensor) -> Tensor:
        """Through the layer, with mask, positions and rotary embeddings as the model gives them."""
        where, given = positions(x), {}
        # without positions, which would be searched for the borders of packed documents
        given["attention_mask"] = self._mask(self._config, x, None, None)
        if self.rotary is not None:
            kind = (self._kind,) if self._by_kind else ()
            given["position_embeddings"] = self.rotary(x, where, *kind)
        if self._takes_positions:
            given["position_ids"] = where
        y = self.layer(x, **given)
        # some layers return a tuple, most the tensor itself, whose [0] would be a sample
        return y if isinstance(y, Tensor) else cast(Tensor, y[0])


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(module.forward).parameters


def build(
    *,
    num_classes: int,
    image_shape: tuple[int, ...],
    config: Path | None = None,
    architecture: str | None = None,
    attn_implementation: Literal["sdpa", "eager"] | None = None,
    **keys: Any,  # noqa: ANN401 (those of the architecture's configuration)
) -> Backbone:
    """A language model of Hugging Face's transformers.

    Args:
        num_classes: the number of tokens of the data's vocabulary.
        image_shape: (T,).
        config: a `config.json`, or the folder that holds one.
        architecture: `model_type` of a Hugging Face model; needed without `config`.
        attn_implementation: which attention; None: sdpa where the architecture has it.
        keys: of the architecture's configuration, in place of those in the file.

    Raises:
        UserError: the configuration is none of a decoder that can be cut, or does not fit the data.
    """
    made = hf_config.configuration(config, architecture, keys, num_classes)
    with hf_config.quiet(), _refused(made):
        model = _model(made, attn_implementation)
        _check_sizes(model.config, num_classes, image_shape)
        blocks, classifier = _cut(model)
        text = f"{_published(model)} {model.config._attn_implementation}"
        _compare(_Cut(text, model, (*blocks, classifier)), image_shape[0])

    chosen = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    args = {**hf_config.arguments(model.config), **chosen}

    def first(count: int) -> Language:
        fewer = hf_config.fewer_layers(args, count)
        with torch.device("meta"):
            language = build(num_classes=num_classes, image_shape=image_shape, **fewer).language
        assert language, "as this one has"
        return language

    language = Language(
        vocabulary=model.config.vocab_size,
        args=args,
        files={"config.json": _published(model)},
        adopt=Adopt(model, _matrices(model), _is_tied(model.config)),
        first=first,
        tied=_matrices(model) if _is_tied(model.config) else None,
    )
    return Backbone(blocks, classifier, _rule(model), "NTC", language)


def _rule(model: Any) -> Callable[[nn.Module], None]:  # noqa: ANN401 (transformers is untyped)
    """The architecture's own rule of fresh weights; as a function, copies of heads share it."""

    def initialize(part: nn.Module) -> None:
        for layer in reversed(list(part.modules())):
            model._init_weights(layer)

    return initialize


def _model(config: Any, attention: str | None) -> Any:  # noqa: ANN401 (transformers is untyped)
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = config.model_type
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _unsupported(config, "it is no decoder-only language model")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING or not getattr(config, "is_causal", True):
        raise _unsupported(config, "its tokens see what follows, as an encoder's")
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config._attn_implementation = attention or ("sdpa" if found._supports_sdpa else "eager")
    config.use_cache = False
    try:
        return found(config)
    except Exception as error:  # whatever a layer makes of its options
        facts = config.to_dict()
        facts |= facts.get("rope_parameters") or {}
        keys = [key for key, value in facts.items() if value in error.args]
        line = first_line(error)
        why = f"no {line} for {' or '.join(keys)}" if keys else line
        raise UserError(
            f"model.*: {kind} cannot be built as configured ({why}); change it"
        ) from error


@contextmanager
def _refused(config: Any) -> Iterator[None]:  # noqa: ANN401 (transformers' own class)
    """A context in which a model that lacks what decoders have is refused, whatever it lacks."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _unsupported(
            config, f"it is made in a way of its own ({first_line(error)})"
        ) from error


def _unsupported(config: Any, why: str) -> UserError:  # noqa: ANN401 (transformers' own class)
    kind = config.model_type
    if kind in TESTED:  # so it is what the user has made of it
        keys = few([f"model.{key}" for key in hf_config.changed(config)], most=8)
        return UserError(
            f"model.*: causal_lm cannot train {kind!r} as configured, as {why}; change one of"
            f" {keys}"
        )
    return UserError(
        f"model.name: causal_lm cannot train {kind!r}, as {why}; choose another architecture, such"
        f" as {', '.join(TESTED)}"
    )


def _check_sizes(config: Any, num_classes: int, shape: tuple[int, ...]) -> None:  # noqa: ANN401
    if len(shape) != 1:
        raise UserError(
            f"model.name: causal_lm takes token ids [T], got inputs of"
            f" {'x'.join(map(str, shape))}; choose another model, or data of tokens"
        )
    if config.vocab_size < num_classes:
        raise UserError(
            f"model.vocab_size: the tokenizer has {num_classes} tokens, and the model only"
            f" {config.vocab_size}; choose the model's own tokenizer, or a larger model.vocab_size"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and 0 < longest < shape[0]:  # -1 says that there is no limit
        raise UserError(
            f"data.sequence_length: the model has {longest} positions, got sequences of {shape[0]};"
            f" choose shorter ones"
        )


def _cut(model: Any) -> tuple[tuple[Block, ...], Block]:  # noqa: ANN401 (transformers is untyped)
    config, base = model.config, model.base_model
    if any(_MIXTURE.search(type(layer).__name__) for layer in model.modules()):
        raise _unsupported(config, "it routes tokens to experts, which need a loss of their own")
    prefix = f"{model.base_model_prefix}."
    parts = _roles(base, model.get_input_embeddings())
    lists = [name for name, child in base.named_children() if isinstance(child, nn.ModuleList)]
    unembedding = model.get_output_embeddings()
    if len(lists) != 1 or "tokens" not in parts or "norm" not in parts or not unembedding:
        raise _unsupported(config, "its parts do not follow one another")
    table, matrix = (part.weight.shape for part in (model.get_input_embeddings(), unembedding))
    if _is_tied(config) and table != matrix:
        raise _unsupported(config, f"it ties matrices of {list(table)} and {list(matrix)}")
    kinds = _kinds(config)
    if odd := set(kinds) - {*_ATTENTION}:
        raise _unsupported(config, f"its layers have {sorted(odd)[0]}")
    rotary, norm = parts.pop("rotary", ("", None))[1], parts.pop("norm")
    embedding = (TiedEmbedding if _is_tied(config) else Embedding)(parts)
    blocks = [Block("embedding", embedding, prefix)]
    for (name, layer), attention in zip(
        base.get_submodule(lists[0]).named_children(), kinds, strict=True
    ):
        made = Layer(name, layer, config, rotary, attention)
        blocks.append(Block(f"layer{name}", made, f"{prefix}{lists[0]}."))
    names = (f"{prefix}{norm[0]}", _path(model, unembedding))
    try:
        classifier = Block("unembedding", Unembedding(norm[1], unembedding, names))
    except ValueError as reason:
        raise _unsupported(config, str(reason)) from None
    return tuple(blocks), classifier


def _roles(base: nn.Module, tokens: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """The parts of a model beside its layers, with their names."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for name, child in base.named_children():
        if child is tokens:
            role = "tokens"
        elif isinstance(child, nn.Embedding):
            role = "positions"
        elif isinstance(child, nn.Dropout):
            role = "dropout"
        elif "Rotary" in type(child).__name__:
            role = "rotary"
        elif not isinstance(child, nn.ModuleList):
            role = "norm"
        else:
            continue
        if role in found:  # the comparison would not tell which
            return {}
        found[role] = name, child
    return found


def _kinds(config: Any) -> list[str]:  # noqa: ANN401 (transformers' own class)
    """The kind of attention of each layer."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return list(kinds)
    slides = getattr(config, "sliding_window", None) is not None
    return [_ATTENTION[slides]] * config.num_hidden_layers


def _is_tied(config: Any) -> bool:  # noqa: ANN401 (transformers' own class)
    return bool(getattr(config, "tie_word_embeddings", False))


def _matrices(model: Any) -> tuple[str, str]:  # noqa: ANN401 (transformers is untyped)
    """The names of the embedding's matrix and of the unembedding's."""
    embedding, unembedding = model.get_input_embeddings(), model.get_output_embeddings()
    return f"{_path(model, embedding)}.weight", f"{_path(model, unembedding)}.weight"


def _path(model: nn.Module, part: nn.Module) -> str:
    path: str = next(name for name, module in model.named_modules() if module is part)
    return path


@dataclass(frozen=True)
class _Cut:
    """A model and its blocks; two of one configuration are equal."""

    text: str
    model: Any = field(compare=False)
    blocks: tuple[Block, ...] = field(compare=False)


@lru_cache(maxsize=32)
@torch.no_grad()
def _compare(cut: _Cut, length: int) -> None:
    """The blocks in order must compute what the model does, and begin as it does.

    As many layers are looked at as it takes to see each kind of attention, and two at least: what
    is not of its kind is a layer's own.

    Raises:
        UserError: they do not.
    """
    config, base = cut.model.config, cut.model.base_model
    kinds = _kinds(config)
    count = min(len(kinds), max(2, *(1 + kinds.index(kind) for kind in kinds)))
    name = next(name for name, child in base.named_children() if isinstance(child, nn.ModuleList))
    layers = base.get_submodule(name)
    embedding, *body, unembedding = cut.blocks
    ids = torch.zeros(2, length, dtype=torch.int64)
    setattr(base, name, layers[:count])
    try:
        with Symbolic() as symbolic:
            x = ids
            for block in (embedding, *body[:count], unembedding):
                x = block.module.train()(x)
            wanted = cut.model.train()(input_ids=ids).logits
    except Exception as error:  # anything that the meta device cannot do, for instance
        reason = first_line(error)
        why = f"its layers cannot run one by one ({reason})"
        raise _unsupported(config, why) from error
    finally:
        setattr(base, name, layers)
    if symbolic.name(wanted) != symbolic.name(x):
        raise _unsupported(
            config,
            "its layers, one after another, do not compute what the whole model does",
        )
    for block in (embedding, *body[:count], unembedding):
        if names := unfilled(block.module, _rule(cut.model)):
            raise _unsupported(config, f"its rule of fresh weights leaves out {few(names)}")


def _published(model: Any) -> str:  # noqa: ANN401 (transformers is untyped)
    """The config.json of an export; the weights say what dtype they have."""
    facts = model.config.to_diff_dict() | {"architectures": [type(model).__name__]}
    for key in ("dtype", "use_cache"):
        facts.pop(key, None)
    return json.dumps(facts, indent=2, sort_keys=True) + "\n"
