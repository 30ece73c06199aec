"""Which engine steps a module, and what a configuration may say of it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline_local.config import Config

DERIVED = {
    "train_batch_size": "data.batch_size",
    "train_micro_batch_size_per_gpu": "train.microbatches",
    "gradient_accumulation_steps": "train.microbatches",
    "managed_gradient_accumulation": "train.microbatches",
    "gradient_allreduce_op": "parallel.replicas",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "optimizer.name",
    "scheduler": "optimizer.schedule",
    "torch_autocast": "precision",
    "amp": "precision",
    "checkpoint": "checkpoint.every_steps",
    "pipeline": "parallel.stages",
    "tensorboard": "log.tensorboard",
    "wandb": "log.wandb",
}
"""Keys of DeepSpeed's that a run derives, and the key that it derives them from."""
STAGES = (1, 2)
"""The stages of ZeRO that engine=deepspeed takes. At stage 0 the engine that is made last decides
with which ranks all engines of a process add up their gradients; stage 3 refuses gradients that are
handed in."""


LARGEST_POWER = 64
"""The largest exponent of the first loss scale, a power of 2: with float32's largest numbers, a
loss times the scale would be infinite."""
_FLOAT16 = "engine=deepspeed with deepspeed.fp16.enabled=true"
_FLOAT16_INSTEAD = "set them, or use precision=bfloat16"


@dataclass(frozen=True)
class EngineSettings:
    """What all modules of a run share of their engines.

    Attributes:
        zero: stage of ZeRO of the torch engine: 0, or 1 for sharded states of optimizers.
        deepspeed: the keys of the section `deepspeed`; None: the torch engine.
    """

    zero: int = 0
    deepspeed: Mapping[str, Any] | None = None

    @property
    def rounds(self) -> bool:
        """Whether parameters become rounded copies of those that the engine steps."""
        return self.scales or _enabled(self.deepspeed, "bf16")

    @property
    def scales(self) -> bool:
        """Whether the engine scales losses, as their gradients are in float16."""
        return _enabled(self.deepspeed, "fp16")

    @classmethod
    def of(cls, config: Config | None) -> "EngineSettings":
        """Return what a configuration says; without one, the torch engine's."""
        if config is None:
            return cls()
        keys = _given(config) if config.engine == "deepspeed" else None
        return cls(config.parallel.zero, keys)


def _enabled(keys: Mapping[str, Any] | None, name: str) -> bool:
    return (keys or {}).get(name, {}).get("enabled", False) is True


def _given(config: Config) -> dict[str, Any]:
    """The keys of the section that have values."""
    return {key: value for key, value in asdict(config.deepspeed).items() if value is not None}


def problems(config: Config) -> Iterator[str]:
    """Yield what is wrong with the engine that a configuration names, one line each."""
    given = _given(config)
    if config.engine == "torch":
        for key in given:
            yield f"deepspeed.{key} needs engine=deepspeed, got torch; set that, or leave it out"
        if config.precision == "float16" and not given:
            yield f"precision=float16 needs {_FLOAT16}, got engine=torch; {_FLOAT16_INSTEAD}"
        return
    yield from _of_run(config)
    zero = given.get("zero_optimization", {})
    stage = zero.get("stage", 1)
    if type(stage) is not int or stage not in STAGES:
        why = {
            "0": "its engines would add up gradients over each other's ranks",
            "3": "it takes no gradients that a module has computed",
        }.get(str(stage), "there is none")
        yield f"deepspeed.zero_optimization.stage must be 1 or 2, got {stage}: {why}; use 1 or 2"
    yield from _of_precision(config, given)


def _of_run(config: Config) -> Iterator[str]:
    """Keys of other sections that DeepSpeed cannot follow."""
    if config.parallel.zero:
        yield (
            f"parallel.zero={config.parallel.zero} is the torch engine's; with engine=deepspeed set"
            f" deepspeed.zero_optimization.stage"
        )
    if config.optimizer.name == "muon":
        yield (
            "optimizer.name=muon updates whole matrices, and engine=deepspeed gives each replica a"
            " part of all elements; use sgd or adamw, or engine=torch with parallel.zero=1"
        )
    if config.precision == "float64":
        yield (
            "engine=deepspeed adds up no gradients in float64; use precision=float32 or"
            " engine=torch"
        )
    if config.channels_last:
        yield (
            "engine=deepspeed lays weights out in one row, without channels_last=true; set it to"
            " false, or use engine=torch"
        )


def _of_precision(config: Config, given: Mapping[str, Any]) -> Iterator[str]:
    switches = {name: given.get(name, {}).get("enabled", False) for name in ("bf16", "fp16")}
    if odd := {name: value for name, value in switches.items() if not isinstance(value, bool)}:
        for name, value in odd.items():
            yield f"deepspeed.{name}.enabled must be true or false, got {value!r}"
        return
    bf16, fp16 = switches.values()
    if bf16 and fp16:
        yield (
            "deepspeed.bf16.enabled and deepspeed.fp16.enabled: parameters have one dtype; leave"
            " one of them out"
        )
        return
    if bf16 and config.precision != "bfloat16":
        yield f"deepspeed.bf16.enabled needs precision=bfloat16, got {config.precision}; set it"
    if fp16 and config.precision != "float16":
        yield f"deepspeed.fp16.enabled needs precision=float16, got {config.precision}; set it"
    if config.precision == "float16" and not fp16 and not bf16:
        yield f"precision=float16 needs {_FLOAT16}, which scales losses; {_FLOAT16_INSTEAD}"
    if fp16:
        yield from _of_scales(given["fp16"])


def _of_scales(fp16: Mapping[str, Any]) -> Iterator[str]:
    """What DeepSpeed would take, and could not follow."""
    if fp16.get("auto_cast"):
        yield "deepspeed.fp16.auto_cast: a run derives it from precision; leave it out"
    if fp16.get("fp16_master_weights_and_grads"):
        yield (
            "deepspeed.fp16.fp16_master_weights_and_grads=true leaves no exact weights for"
            " checkpoints; leave it out"
        )
    power, hysteresis = fp16.get("initial_scale_power", 0), fp16.get("hysteresis", 1)
    if isinstance(power, int) and not 0 <= power <= LARGEST_POWER:
        yield (
            f"deepspeed.fp16.initial_scale_power must be from 0 to {LARGEST_POWER}, as the first"
            f" scale is 2 to this power, got {power}"
        )
    if isinstance(hysteresis, int) and hysteresis < 1:
        yield (
            f"deepspeed.fp16.hysteresis must be at least 1, or the scale never falls, got"
            f" {hysteresis}"
        )
