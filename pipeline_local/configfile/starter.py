"""A new configuration file: every key with its meaning, all defaults commented out."""

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

from pipeline_local.configfile import keys
from pipeline_local.models import cifar_resnet
from pipeline_local.models.registry import MODELS

_WIDTH = 100
_HEAD = """\
# pipeline-local train {file}
#
# What is commented out has the value that it would have anyway. `pipeline-local explain KEY` says
# more, and further keys are in docs/configuration.md.
"""
_Tree = dict[str, dict[str, Any]]
_IMAGES: _Tree = {
    "modules": {"count": 4},
    "data": {"name": "digits", "batch_size": 64},
    "train": {"epochs": 12},
    "optimizer": {"lr": 0.1, "weight_decay": 5e-4, "warmup": 0.1},
    "run": {"dir": "runs/first"},
}
_ADAM = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "warmup": 0.1}
_COLOURED = {"name": "synthetic", "batch_size": 64}
_LARGE: _Tree = {"data": {**_COLOURED, "image_size": 224}, "optimizer": _ADAM}
"""Of torchvision's models, which do not take gray images of 8x8."""
_CIFAR = {f"resnet{depth}" for depth in cifar_resnet.DEPTHS}
_OWN: dict[str, _Tree] = {
    "mlp": {"optimizer": {**_ADAM, "weight_decay": 0.0}},
    "vit": {
        "model": {
            "patch_size": 4,
            "num_layers": 4,
            "num_heads": 4,
            "hidden_dim": 64,
            "mlp_dim": 128,
        },
        "data": {**_COLOURED, "image_size": 32},
        "optimizer": _ADAM,
    },
    "causal_lm": {
        "model": {
            "architecture": "llama",
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        "task": {"name": "next_token"},
        "modules": {"count": 2},
        "head": {"name": "readout"},
        "data": {"name": "synthetic_tokens", "sequence_length": 128, "batch_size": 16},
        "train": {"steps": 200},
        "optimizer": {**_ADAM, "lr": 3e-3, "weight_decay": 0.1, "decay": "matrices", "clip": 1.0},
    },
}
"""What a model needs beside, or instead of, what a small network of images does."""


def text(model: str, file: str) -> str:
    """Return the text of a configuration that trains a model on data that needs no download.

    Args:
        model: its name, of the registry.
        file: what the file will be called.

    Raises:
        UserError: there is no such model.
    """
    MODELS.find(model)
    small = model in _OWN or (model.startswith("resnet") and model in _CIFAR)
    tree = _IMAGES | (_OWN.get(model, {}) if small else _LARGE)
    tree = {**tree, "model": {"name": model, **tree.get("model", {})}}
    parts = ["\n".join(_section(name, tree.get(name, {}))) for name in keys.sections()]
    rest = "\n".join(_lines("", {})).strip()
    return "\n\n".join([_HEAD.format(file=file).strip(), *parts, rest]) + "\n"


def _section(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield from _comment(keys.about(name), "")
    yield f"{name}:"
    yield from _lines(name, values)


def _lines(section: str, values: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a section, those with a value of their own without a comment sign."""
    indent = "  " if section else ""
    known = [key for key in keys.of_section(section) if not key.name.endswith(".KEY")]
    names = [key.name.rpartition(".")[2] for key in known]
    for key, name in zip(known, names, strict=True):
        yield ""
        values_of = "" if key.values == "text" else f" ({key.values.replace('`', '')})"
        yield from _comment(key.meaning + values_of, indent)
        sign, value = ("", values[name]) if name in values else ("# ", key.default)
        yield f"{indent}{sign}{name}: {value}"
        if name == "name":  # the options of the entry
            yield from (f"{indent}{k}: {v}" for k, v in values.items() if k not in names)


def _comment(about: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return wrap(
        about, _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
    )
