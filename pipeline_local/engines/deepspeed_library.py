"""DeepSpeed as a library: is it there, does it take what it is given, and what does it print."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import ValidationError

from pipeline_local.errors import UserError, did_you_mean
from pipeline_local.user_input.values import by_key, shorten, should_be

OLDEST = (0, 19, 8)
"""Earlier releases take a step in float32 with gradients that are not finite."""


def configuration(section: Mapping[str, Any], clip: float | None, size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration of one module.

    Args:
        section: the keys of the section `deepspeed`.
        clip: largest gradient norm; None: any.
        size: number of elements of the module's parameters.
    """
    # the default is a buffer of half a billion elements for each module
    zero = {"stage": 1, "reduce_bucket_size": size} | section.get("zero_optimization", {})
    return {
        **section,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,  # only counted
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # a step ends when we say so
        "gradient_allreduce_op": "sum",  # of shares of the mean over all microbatches
        "gradient_clipping": clip or 0.0,  # else 1
        "zero_allow_untested_optimizer": True,  # the engine has looked at it
        "zero_force_ds_cpu_optimizer": False,  # torch's own steps offloaded states, too
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
    }


def check(section: Mapping[str, Any], device: torch.device) -> None:
    """Refuse what DeepSpeed would refuse, before any rank starts.

    Args:
        section: the keys of the section `deepspeed`.
        device: of the modules.

    Raises:
        UserError: it is not installed or too old, or refuses the section.
    """
    imported(device)
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    kinds = {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
    }
    for name, kind in kinds.items():
        given = section.get(name, {})
        try:
            kind(**given)
        except ValidationError as error:
            (where, items), *_ = by_key(error, len).items()
            key = ".".join(["deepspeed", name, *map(str, where)])
            if items[0]["type"] == "extra_forbidden":
                known = list(kind.model_fields) if len(where) == 1 else []
                near = did_you_mean(str(where[-1]), known) or "; leave it out"
                raise UserError(f"unknown key {key!r}{near}") from None
            value = items[0]["input"]
            if items[0]["type"] == "value_error":  # a sentence of DeepSpeed's
                reason = items[0]["msg"].removeprefix("Value error, ")
                raise UserError(f"{key}: {reason}, got {shorten(value)}") from None
            raise UserError(should_be(key, items, value)) from None
    if section.get("fp16", {}).get("enabled"):
        _refuse_float16(device)


def _refuse_float16(device: torch.device) -> None:
    """Its own check comes when ranks train already, and says less."""
    from deepspeed import __version__
    from deepspeed.accelerator import get_accelerator

    with asked_for(device):
        supported = get_accelerator().is_fp16_supported()
    if not supported:
        raise UserError(
            f"deepspeed.fp16.enabled: DeepSpeed {__version__} takes no float16 on this"
            f" {device.type}, which has no instructions for it; use deepspeed.bf16.enabled with"
            f" precision=bfloat16"
        )


def imported(device: torch.device) -> Any:  # noqa: ANN401 (a module)
    """Return DeepSpeed, for devices of this type.

    Raises:
        UserError: it is not installed, or too old.
    """
    wanted = ".".join(map(str, OLDEST))
    if find_spec("deepspeed") is None:
        raise UserError(
            f"engine=deepspeed needs the package deepspeed, which is not installed; run"
            f" pip install 'deepspeed>={wanted}', or use engine=torch"
        )
    with calm(), asked_for(device):
        import deepspeed
    found = deepspeed.__version_major__, deepspeed.__version_minor__, deepspeed.__version_patch__
    if found < OLDEST:
        raise UserError(
            f"engine=deepspeed needs deepspeed {wanted} or later, got {deepspeed.__version__}; run"
            f" pip install -U deepspeed"
        )
    # on CPUs the first engine of a process would compile it; nothing here uses it
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    return deepspeed


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """What DeepSpeed prints goes to stderr, and warnings about its code nowhere."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def asked_for(device: torch.device) -> Iterator[None]:
    """DeepSpeed asks the environment for its device."""
    names = {"LOCAL_RANK": str(device.index or 0), "DS_ACCELERATOR": device.type}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
