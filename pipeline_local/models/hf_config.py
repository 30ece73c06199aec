"""The configuration of a Hugging Face language model: from its file, or from arguments.

Nothing is downloaded, and no code that comes with a model is run.
"""

import json
import logging
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline_local.errors import UserError, did_you_mean
from pipeline_local.user_input.values import shorten

MISSING = (
    "model.name: causal_lm needs Hugging Face's transformers, which is not installed; run"
    ' pip install "pipeline-local[lm]"'
)
_NOT_OURS = {
    *("transformers_version", "architectures", "dtype", "torch_dtype", "model_type", "auto_map"),
    *("id2label", "label2id", "num_labels", "problem_type", "return_dict", "use_cache"),
    *("output_hidden_states", "output_attentions", "chunk_size_feed_forward", "extra_config_files"),
    *("is_encoder_decoder", "is_decoder", "add_cross_attention", "name_or_path", "extra_files"),
}
"""Keys of a configuration that say nothing about a decoder, or that a run decides."""
_ROTARY = ("rope_theta", "rope_scaling", "head_dim")
"""Keys that every model with rotary embeddings reads, whether or not its class names them."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_PER_LAYER = ("layer_types", "no_rope_layers")
"""Keys of lists with an entry per layer."""
_SIZES = {
    *("vocab_size", "hidden_size", "intermediate_size", "head_dim", "max_position_embeddings"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "n_inner"),
    *("query_pre_attn_scalar", "sliding_window", "no_rope_layer_interval"),
}
"""Keys of which transformers takes 0 or less, and fails later or builds what cannot learn."""


@contextmanager
def quiet() -> Iterator[None]:
    """A context in which transformers logs errors alone: what matters is said in our own words."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def configuration(
    file: Path | None, architecture: str | None, keys: Mapping[str, Any], vocabulary: int
) -> Any:  # noqa: ANN401 (transformers' own class)
    """The configuration of a model.

    Args:
        file: a `config.json`, or the folder that holds one; None: there is none.
        architecture: Hugging Face's name of it (`model_type`); None: the file says it.
        keys: of the configuration; they go before the file's.
        vocabulary: the number of tokens of the data, which the model's defaults to.

    Raises:
        UserError: it is missing, no decoder's, or has unknown keys or wrong values.
    """
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        raise UserError(MISSING) from None
    found = {} if file is None else _read(file)
    kind = found.pop("model_type", None)
    if architecture is not None and kind not in (None, architecture):
        raise UserError(
            f"model.architecture: {file} is of {kind!r}, got {architecture!r}; leave it out"
        )
    kind = kind or architecture
    if kind is None:
        raise UserError(
            "missing key 'model.architecture': model.name=causal_lm needs it, or model.config; add"
            " model.architecture=llama, for instance, or model.config=FOLDER"
        )
    if kind not in CONFIG_MAPPING:
        hint = did_you_mean(str(kind), list(CONFIG_MAPPING.keys())) or "; choose another model"
        raise UserError(f"model.architecture: transformers has no {shorten(kind)}{hint}")
    with quiet():
        return _made(CONFIG_MAPPING[kind], kind, found, keys, vocabulary)


def _read(file: Path) -> dict[str, Any]:
    path = file / "config.json" if file.is_dir() else file
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"model.config: {path} cannot be read ({error.strerror}); name a config.json, or the"
            f" folder that holds it"
        ) from None
    except ValueError:
        raise UserError(f"model.config: {path} is no JSON file; is it whole?") from None
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise UserError(
            f"model.config: {path} has no model_type; name the config.json of a Hugging Face model"
        )
    if "quantization_config" in found:
        raise UserError(
            f"model.config: {path} is of a quantized model, which cannot be trained; name that of"
            f" the model before it was quantized"
        )
    return found


def _made(
    kind: Any,  # noqa: ANN401 (transformers' own class)
    name: str,
    found: Mapping[str, Any],
    keys: Mapping[str, Any],
    vocabulary: int,
) -> Any:  # noqa: ANN401
    known, recorded = _known(kind), _is_recorded(kind, keys)
    for key in keys:
        if key in _NOT_OURS or (key not in known and not recorded):
            names = [each for each in known if each not in _NOT_OURS]
            hint = did_you_mean(key, names).replace("'", "'model.", 1)
            hint = hint or f"; it takes {', '.join(names)}"
            raise UserError(
                f"unknown key {shorten(f'model.{key}')} for model.architecture={name}{hint}"
            )
    aliases = kind.attribute_map
    _check_sizes(found, keys, {aliases.get(key, key) for key in _SIZES} | _SIZES)
    own = {aliases.get(key, key): value for key, value in found.items()}
    own |= {aliases.get(key, key): value for key, value in keys.items()}
    own = {key: value for key, value in own.items() if key not in _NOT_OURS - {"is_decoder"}}
    _fit_layers(own, {aliases.get(key, key) for key in keys})
    own.setdefault("vocab_size", vocabulary)
    if not found:  # the defaults are of one model of the architecture, and of its tokenizer
        own = {token: None for token in _TOKENS if token in _nullable(kind)} | own
        if "num_key_value_heads" in known and "num_attention_heads" in own:
            own.setdefault("num_key_value_heads", own["num_attention_heads"])
    try:
        config = kind(**own)
    except Exception as error:  # whatever its checks raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[-1] if lines else type(error).__name__
        raise UserError(
            f"model.*: {name} cannot be configured with {shorten(dict(keys) or dict(own))} ({why});"
            f" change them"
        ) from None
    # what its class has not used up says nothing of the model, and is no key of ours
    for key in own.keys() - {*known, *keys}:
        vars(config).pop(key, None)
    return config


def _known(kind: Any) -> list[str]:  # noqa: ANN401 (transformers' own class)
    """The keys of an architecture."""
    names = [each.name for each in fields(kind) if not each.name.startswith("_")]
    rotary = _ROTARY if "rope_parameters" in names else ()
    return [*dict.fromkeys((*names, *kind.attribute_map, *rotary))]


def _nullable(kind: Any) -> list[str]:  # noqa: ANN401 (transformers' own class)
    return [each.name for each in fields(kind) if "None" in str(each.type)]


def _is_recorded(kind: Any, keys: Container[str]) -> bool:  # noqa: ANN401 (transformers' own class)
    """Whether keys are what a run has written down: they name all that the architecture has.

    Earlier versions wrote down what else stood in a run's file.
    """
    from transformers import PreTrainedConfig

    own = {each.name for each in fields(kind)} - {each.name for each in fields(PreTrainedConfig)}
    return all(key in keys for key in own - _NOT_OURS)


def changed(config: Any) -> list[str]:  # noqa: ANN401 (transformers' own class)
    """The keys with other values than the architecture's own, sizes last."""
    own, kind = type(config)().to_dict(), type(config)
    known = {*_known(kind)} - {*_NOT_OURS, *_TOKENS, "vocab_size"}
    found = [key for key, value in config.to_dict().items() if value != own.get(key, value)]
    return sorted((key for key in found if key in known), key=_SIZES.__contains__)


def unknown(args: Mapping[str, Any]) -> list[str]:
    """The `model.*` keys of a language model that its architecture knows nothing of."""
    from transformers import CONFIG_MAPPING

    known = {"architecture", "attn_implementation", *_known(CONFIG_MAPPING[args["architecture"]])}
    return [key for key in args if key not in known]


def _check_sizes(found: Mapping[str, Any], keys: Mapping[str, Any], sizes: set[str]) -> None:
    """Each size must be a whole number of at least 1; null and lists are for transformers to judge.

    Raises:
        UserError: one is not.
    """
    own = {**found, **keys}
    for key in sizes & own.keys():
        value = own[key]
        unused = key == "sliding_window" and own.get("use_sliding_window") is False
        if unused or not isinstance(value, int | float | str) or (type(value) is int and value > 0):
            continue
        change = "change it" if key in keys else f"correct model.config, or set model.{key}"
        raise UserError(
            f"model.{key}: should be a whole number of at least 1, got {shorten(value)}; {change}"
        )


def _fit_layers(own: dict[str, Any], said: Container[str]) -> None:
    """Lists with an entry per layer follow another number of layers, but for those that are said:
    they are cut, and where they are too short transformers' own default takes their place."""
    count = own.get("num_hidden_layers")
    for key in _PER_LAYER:
        values = own.get(key)
        if key in said or not isinstance(values, list) or not isinstance(count, int):
            continue
        if count > len(values):
            del own[key]
        else:
            own[key] = values[:count]


def fewer_layers(args: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The `model.*` keys of a model with the first `count` of its layers."""
    own = {**args, "num_hidden_layers": count}
    _fit_layers(own, ())
    return own


def arguments(config: Any) -> dict[str, Any]:  # noqa: ANN401 (transformers' own class)
    """The `model.*` keys that give this configuration again, without a file."""
    own = {k: v for k, v in config.to_diff_dict().items() if k not in _NOT_OURS}
    own = {key: value for key, value in own.items() if not key.startswith("_")}
    return {"architecture": config.model_type, **own, "vocab_size": config.vocab_size}
