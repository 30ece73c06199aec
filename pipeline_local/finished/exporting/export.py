"""`export`: a finished run as a file that others load, the whole network or one of its exits."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline_local import __version__
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.data.tokens.entry import tokenizer_of
from pipeline_local.errors import UserError
from pipeline_local.finished.exits.network import ExitNetwork, check
from pipeline_local.finished.exporting import formats
from pipeline_local.finished.exporting.shorter import shorter
from pipeline_local.finished.finished import CPU, load, relocated
from pipeline_local.learning.module import LocalModule
from pipeline_local.models import hf_folder, weights
from pipeline_local.models.backbone import Block, Language
from pipeline_local.ranks.caller import undisturbed
from pipeline_local.text.tokenizer import Tokenizer
from pipeline_local.user_input import new_file

BATCH = 3
"""Random samples on which a program is compared with the network."""


@undisturbed
def export(
    run: Path,
    output: Path,
    step: int | str = "newest",
    exit: int | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Write a network without what only training needs, as the ending of the file says.

    - `.safetensors`: weights. Of the whole network under the model's own names: a torchvision model
      loads them with `strict=True`. Of an exit under the names of `ExitNetwork`.
    - `.pt2`: a program of `torch.export`; `.onnx`: the same as ONNX. Both take batches of any size
      of normalised inputs, are read again, and are compared with the network.
    - Of a language model, anything else is a folder for `AutoModelForCausalLM.from_pretrained`. An
      exit of `head.name=readout` is a shorter model there.

    Files hold facts about the run as metadata (`facts`).

    Args:
        run: its folder.
        output: a new file or folder.
        step: of the checkpoint, as `finished.load` takes it.
        exit: number of the module, from 1, whose head gives the outputs; None: the whole network.
        overrides: `key=value`, of `finished.READING` alone: where a tokenizer is now.

    Returns:
        The weights by name.

    Raises:
        UserError: no run, no such checkpoint or module, another key, `output` exists already or
            cannot be written, or the network cannot be exported so.
    """
    new_file.check("--output", output)
    formats.check_libraries(output)
    blueprint, modules, step = load(run, CPU, step, compiled=False)
    blueprint = relocated(blueprint, run, overrides)
    count = check("--exit", exit, len(modules))
    if output.suffix not in formats.SUFFIXES:
        language = blueprint.backbone.language
        if not language:
            endings = ", ".join(formats.SUFFIXES)
            raise UserError(f"--output: must end in one of {endings}, got {output}; name a file")
        if count < len(modules):
            return _folder(blueprint, *shorter(blueprint, modules[:count]), output)
        return _folder(blueprint, language, weights.model_state(_parts(blueprint, modules)), output)
    network = ExitNetwork(modules[:count])
    metadata = facts(blueprint, run, step, count)
    if output.suffix != formats.WEIGHTS:
        example = blueprint.example_inputs(BATCH, torch.Generator().manual_seed(0))
        formats.write_program(network, example, metadata, output)
        return network.state_dict()
    whole = exit is None
    state = weights.model_state(_parts(blueprint, modules)) if whole else network.state_dict()
    formats.write_weights(state, metadata, output)
    return state


def _parts(blueprint: Blueprint, modules: list[LocalModule]) -> list[tuple[Block, nn.Module]]:
    return [part for module in modules for part in blueprint.parts(module)]


def _folder(
    blueprint: Blueprint, language: Language, state: dict[str, Tensor], output: Path
) -> dict[str, Tensor]:
    """Write a language model as Hugging Face's libraries read it."""
    data, info = blueprint.config.data, blueprint.info
    named = info.tokenizer is not None or data.args.get("tokenizer") is not None
    tokenizer = tokenizer_of(data, info) if named else None
    end = tokenizer.end_token if tokenizer else None
    state, files = hf_folder.published(language, state, end)
    hf_folder.write(output, state, files | (_files(tokenizer) if tokenizer else {}))
    return state


def _files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer, by name."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def facts(blueprint: Blueprint, run: Path, step: int, exit: int) -> dict[str, str]:
    """Return what stands in an exported file beside the network: text by name.

    Everything but the name of the model and of the run folder is JSON.
    """
    config, info = blueprint.config, blueprint.info
    values = {
        "model_options": config.model.args,
        "classes": info.classes,
        "mean": info.mean,
        "std": info.std,
        "input_shape": info.sample_shape,
        "modules": len(blueprint.modules),
        "exit": exit,
        "step": step,
    }
    return {
        "format": "pt",
        "pipeline_local": __version__,
        "run": run.resolve().name,
        "model": config.model.name,
        **{name: json.dumps(value, default=str) for name, value in values.items()},
    }
