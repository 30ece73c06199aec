"""The configuration of a run as frozen dataclasses; `configfile` reads and checks them.

What can be derived is no key, or `null`: its field says what that means; runs print the value.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

Positive = Annotated[int, Field(ge=1, lt=2**63)]
Fraction = Annotated[float, Field(gt=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, le=10**9)]  # products of weights are to fit float32
Cuts = Literal["uniform", "parameters", "blocks", "auto", "memory"]
_MOST_OF_A_HOST = 1024
"""Threads or processes: far beyond any host's cores, the system kills the run without a word."""


@dataclass(frozen=True)
class Section:
    """What all parts of the configuration share: no unknown key, no infinite number."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class NamingSection(Section):
    """A section that names an entry of a registry, or "python:package.module:name"."""

    args: dict[str, Any] = field(default_factory=dict, kw_only=True, hash=False)
    """The further `SECTION.KEY` entries: options of the entry, checked against its signature."""


@dataclass(frozen=True)
class ModelConfig(NamingSection):
    """The backbone. Any further `model.KEY` is passed to the builder of that model."""

    name: str
    """resnet20, resnet50, vit_b_16, swin_t, vgg11_bn, causal_lm, ... or
    "python:package.module:function"."""
    weights: Path | None = None
    """State dict (.safetensors or .pt, or a folder of safetensors) to start from; prefixes of
    wrappers (`module.`, `_orig_mod.`, `model.`) are taken off. null: fresh, from the seed."""


@dataclass(frozen=True)
class ModulesConfig(Section):
    """How blocks are grouped into gradient-isolated modules: this fixes the mathematics."""

    count: Positive | None = None
    """K. One module is plain backpropagation. null: as many as `cuts` makes, else one per stage."""
    cuts: Cuts | tuple[str | int, ...] = "uniform"
    """uniform: equal block counts; parameters: equal parameter counts; blocks: every block is a
    module; auto: equal costs; memory: equal activations, for modules that share a device; or the
    K-1 blocks (name or index) that open modules 2..K."""
    recompute: bool = False
    """Activation checkpointing: keep each block's input only, compute the rest again."""
    profile: Path | tuple[Path, ...] | None = None
    """Measured costs, by `pipeline-local profile`, for cuts that are auto: one file, or one of each
    stage's device where they differ; null: FLOPs."""

    @property
    def known_count(self) -> int | None:
        """K, as far as this section alone says it; None: as many as the model has blocks."""
        if self.count is not None or self.cuts == "blocks":
            return self.count
        return 1 if isinstance(self.cuts, str) else len(self.cuts) + 1


@dataclass(frozen=True)
class HeadConfig(NamingSection):
    """The auxiliary heads. The last module's head is always the network's own classifier."""

    name: str = "auglocal"
    """linear; etf: fixed simplex vertices, nothing to learn; mlp: DGL's mlp-sr; conv: InfoPro's
    1c2f; auglocal: fresh copies of later blocks; ema: a read-only copy of the next module's first
    block; readout: for language models, private blocks and a read-only copy of the last module's
    unembedding."""
    depth: Annotated[int, Field(ge=0, lt=2**63)] = 2
    """auglocal: copied blocks in the first module's head; readout: in each head."""
    taper: bool = True
    """auglocal: linearly fewer of them towards the output; false: equally many, while there are."""
    pool: Positive = 1
    """auglocal: side of the squares of positions whose means the copies see; 2 costs a quarter."""
    refresh: Positive = 10
    """ema, readout: steps from one publication of the copied parameters to the next."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """ema: of the running mean that the copy is, for each step; 0: the newest publication."""
    fraction: Fraction = 1.0
    """The random part of each batch from which auxiliary heads learn and give signals, the same for
    all of them. Bodies see the whole batch; the other samples give them no gradient."""


@dataclass(frozen=True)
class InformationConfig(NamingSection):
    """A second term of the local loss of each module with an auxiliary head, in training only: it
    keeps in the activations what later modules may need. Where a weight is a list of two, it is
    that of the first and of the last of these modules, and linear between them."""

    name: str | None = None
    """reconstruction: a small decoder gives back the module's own input; contrast: projections of
    the same class are to be close. null: no such term."""
    weight: NonNegative | tuple[NonNegative, NonNegative] = 0.5
    """Of the term."""
    task_weight: NonNegative | tuple[NonNegative, NonNegative] = 1.0
    """Of the loss of the head's outputs, where there is such a term."""


@dataclass(frozen=True)
class ReconcileConfig(NamingSection):
    """Successive gradient reconciliation: `weight * discord` is added to each local loss."""

    weight: NonNegative = 0.0
    """lambda. 0 is plain non-greedy local learning."""
    direction: Literal["downstream", "upstream", "both"] = "downstream"
    """Who gives way: downstream, a module to its upstream neighbour's signal; upstream, a module's
    head to its downstream neighbour's input gradient, a fixed number of steps later; or both."""
    distance: Literal["relative", "pooled", "squared"] = "relative"
    """What is made small: squared |g - s|; relative: the same over |g| and |s| squared; pooled:
    relative, of the sums over all positions."""
    estimator: str = "shift"
    """shift: the plain gradient, at an input moved by lambda times the discord's gradient;
    finite_difference: a third more expensive, for any lambda; exact: double backward."""
    every: Positive = 8
    """Reconcile every n-th step, with lambda scaled by n. 8 costs about a tenth of a step."""
    fraction: Fraction = 1.0
    """The random part of each batch on which the discord is estimated; upstream: always all."""
    step: Annotated[float, Field(gt=0)] = 0.03
    """finite_difference: norm of the perturbation over the norm of the input."""

    @property
    def strength(self) -> float:
        """lambda of a step that reconciles."""
        return self.weight * self.every

    @property
    def feeds_back(self) -> bool:
        """Whether anything flows upstream."""
        return self.weight > 0 and self.direction != "downstream"


@dataclass(frozen=True)
class DistillConfig(Section):
    """Distillation: an auxiliary head learns from the outputs of later heads for the same batch,
    which flow upstream and arrive a fixed number of steps later."""

    weight: NonNegative = 0.0
    """Of the divergence of a head's outputs from its teacher's. 0: off."""
    teacher: Literal["together", "last"] = "together"
    """together: the head itself and all later ones; last: the network's own classifier."""
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 2.0
    """What logits are divided by, 0.01 to 100; the divergence is multiplied by its square."""
    every: Positive = 2
    """Distil the batch of every n-th step, with the weight scaled by n: rough where n is large. A
    module keeps its activations until then: 5 steps for each module downstream."""

    @property
    def strength(self) -> float:
        """The weight in a step that distils."""
        return self.weight * self.every


@dataclass(frozen=True)
class DataConfig(NamingSection):
    """The data. Only the first stage reads it. Any further `data.KEY` is an option of `name`."""

    name: str
    """digits: scikit-learn's; synthetic: made on the fly; cifar10, cifar100, imagefolder,
    webdataset, parquet, tokens: read `data.root`; or "python:package.module:function"."""
    root: Path | None = None
    """Folder of cifar10, cifar100, imagefolder (`train/<class>/*`), webdataset (`train/*.tar`),
    parquet (`train/*.parquet`) or tokens (texts, token files); `test` or `val` beside `train`."""
    batch_size: Positive = 128
    """Samples (of tokens: sequences) per optimizer step, over all microbatches and replicas."""
    image_size: Positive | None = None
    """Side in pixels; null: the data's own (imagefolder: 224)."""
    augment: Literal["none", "standard", "trivial"] = "none"
    """standard: random crop and flip; trivial: standard, then TrivialAugmentWide."""
    mixup: NonNegative = 0.0
    """Mixup's Beta(alpha, alpha); labels become soft targets. 0: off."""
    limit: Positive | None = None
    """Use at most this many training samples (of tokens: sequences), and as many test samples;
    null: all."""
    workers: Annotated[int, Field(ge=0, le=_MOST_OF_A_HOST)] = 0
    """Loader processes of the first stage. Never changes a result."""
    on_error: Literal["fail", "skip"] = "fail"
    """An image cannot be read. fail: stop and name it; skip: the next readable one of its class
    takes its place, a test image is left out; they are counted (`skipped_images`)."""


@dataclass(frozen=True)
class TaskConfig(NamingSection):
    """What is learned: the local loss, the score, and what labels look like."""

    name: str = "classification"
    """classification: cross-entropy over classes."""


@dataclass(frozen=True)
class TrainConfig(Section):
    """How long, how often, from which seed."""

    epochs: Positive | None = None
    """Passes over the data. Give this, `steps` or `tokens`."""
    steps: Positive | None = None
    """Optimizer steps."""
    tokens: Positive | None = None
    """Tokens to train on, rounded up to whole steps; with `data.name=tokens`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Everything random is a pure function of it."""
    microbatches: Positive = 1
    """Parts of a batch that travel the pipeline one by one; one optimizer step for all of them."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of the target that is spread over all classes, in every local loss. For classification,
    next_token, and tasks of your own that take it."""
    evaluate_every: Positive | None = None
    """Steps between evaluations; null: once per epoch. The end is always evaluated."""
    log_every: Positive = 20
    """Steps between lines in metrics/. Discord and cosine are measured at least that often."""
    on_nan: Literal["fail", "skip"] = "fail"
    """A module's loss or gradient is not finite. fail: stop; skip: leave out its update, and count
    it (`skipped_updates`)."""


@dataclass(frozen=True)
class OptimizerConfig(NamingSection):
    """One optimizer per module, all of the same settings."""

    name: str = "sgd"
    """sgd, adamw, or muon: for matrices, with adamw for all else."""
    lr: Annotated[float, Field(gt=0, le=10**9)] = 0.1
    """Highest learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """sgd, muon: Nesterov momentum; adamw: beta1. Refused where your own optimizer takes none."""
    weight_decay: NonNegative = 1e-4
    """Of the parameters that `decay` names. Refused as `momentum` is."""
    decay: Literal["all", "matrices"] = "all"
    """all: every parameter decays; matrices: no biases, norms, embeddings or unembeddings (that of
    a plain auxiliary head decays), as is usual for language models. muon: always matrices."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of all steps with a linearly rising rate."""
    schedule: str = "cosine"
    """After the warm-up. cosine, linear: to zero; constant; wsd: constant, then linear to zero in
    the last fifth; or "python:package.module:function": (step, num_steps) -> factor of the rate."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest gradient norm of a module; null: off. Local to the module, never a global vote."""


@dataclass(frozen=True)
class ParallelConfig(NamingSection):
    """Where the modules run: this never changes a result, but for `wire_dtype`, `sync_batchnorm`,
    `memory` where `modules.cuts` is auto, and rounding where replicas add up their gradients."""

    stages: Positive | None = None
    """S ranks in a chain; null: the launcher's world size, or 1 without a launcher."""
    replicas: Positive | tuple[Positive, ...] | Literal["auto"] = 1
    """Ranks of each stage, which share its microbatches; or one number for each stage, such as
    [1, 2, 1]; auto: a launcher's ranks, more of them for stages that cost more.
    `train.microbatches` is a multiple of each."""
    sync_batchnorm: bool = False
    """Batch norms of several replicas normalise by the microbatches of all of them together."""
    zero: Literal[0, 1] = 0
    """Stage of ZeRO with `engine: torch`. 1: each replica of a stage keeps the optimizer's state of
    some parameters, updates them, and gives them to the others."""
    cuts: Literal["uniform", "auto"] | tuple[Annotated[int, Field(ge=2)], ...] = "uniform"
    """uniform: equal numbers of modules; auto: equal costs; or the S-1 modules (numbers from 1)
    that open stages 2..S."""
    memory: Annotated[float, Field(gt=0)] | None = None
    """GiB that a device has for tensors: cuts that are auto keep each part within it; null: nine
    tenths of the profiled GPU's, else no limit."""
    threads: Annotated[int, Field(ge=1, le=_MOST_OF_A_HOST)] | None = None
    """CPU threads per rank; null: cores / ranks of this host. On a busy host 1 is up to 5 times
    faster for small models."""
    backend: str | None = None
    """gloo, nccl, or "python:package.module:name"; null: nccl where every rank has a GPU of its
    own, else gloo."""
    devices: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Numbers of the GPUs that the ranks of each host take, in their order; null: neighbours get
    the fastest links (NVLink, then PCIe), where NVML knows them, else GPUs as they are numbered."""
    wire_dtype: Literal["bfloat16", "float16"] | None = None
    """What crosses between modules is rounded to it, on any placement: half of float32's bytes.
    float16: activations only, gradients as bfloat16, which has their range. null: not rounded."""
    timeout: Annotated[float, Field(ge=1, le=7200)] = 60.0
    """Seconds that a rank may stay in one act before the run ends as stalled. The first step, the
    first evaluation and every checkpoint may take ten times as long."""


@dataclass(frozen=True)
class DeepSpeedConfig(Section):
    """With `engine: deepspeed`, keys of DeepSpeed's own configuration. What it would read of batch
    sizes, accumulation, clipping, optimizer and schedule, a run derives."""

    zero_optimization: dict[str, Any] | None = field(default=None, hash=False)
    """As in DeepSpeed: `stage` 1 or 2, `offload_optimizer: {device: cpu}`, `reduce_bucket_size`,
    and others. null: stage 1."""
    bf16: dict[str, Any] | None = field(default=None, hash=False)
    """`enabled: true`: parameters in bfloat16, with shards of exact ones in float32; it needs
    `precision: bfloat16`. null: parameters in float32."""
    fp16: dict[str, Any] | None = field(default=None, hash=False)
    """`enabled: true`: as `bf16`, in float16, with `precision: float16`. Each module has a loss
    scale of its own, which follows the other keys (`loss_scale`, `initial_scale_power`, ...)."""
    communication_data_type: Literal["fp32", "bf16", "fp16"] | None = None
    """What gradients are rounded to while they are added up. null: as the parameters are."""
    zero_allow_untested_optimizer: bool | None = None
    """An optimizer of your own updates each element by itself, so that its state can be cut
    anywhere. null: only sgd, adamw and what DeepSpeed knows."""


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """One file per module, written without draining the pipeline."""

    every_steps: Positive | None = None
    """null: after every evaluation. There is always one after the last step."""
    keep: Positive = 2
    """Newest complete checkpoints that stay."""


@dataclass(frozen=True)
class LogConfig(Section):
    """Loggers beside the run folder's own metrics: each gets one run with a curve for each module.
    One that fails is a warning, and never slows or ends a run."""

    tensorboard: bool = False
    """TensorBoard's event files, in `tensorboard/` of the run folder."""
    wandb: str | None = None
    """Project of Weights & Biases; null: none. With WANDB_MODE=offline no network is needed."""
    mlflow: str | None = None
    """Experiment of MLflow; null: none. MLFLOW_TRACKING_URI says where; without it, `mlflow.db` of
    the current folder."""


@dataclass(frozen=True)
class TraceConfig(Section):
    """The timeline of a run, all stages in one file. Never changes a result."""

    steps: tuple[Positive, Positive] | None = None
    """[first, last], counted from 1: `trace.json` shows these steps, with evaluations and
    checkpoints after them, and the largest waits are printed. null: each stage keeps its newest
    acts, for `pipeline-local trace`."""
    profiler: bool = False
    """Also run torch's profiler in these steps: a file per stage, in `trace/`. It is slow."""


@dataclass(frozen=True)
class RunConfig(Section):
    """Where a run leaves what it made."""

    dir: Path = Path("runs/default")
    """Never overwritten: resume it or name another."""
    resume: bool = False
    """Go on from the newest complete checkpoint in `run.dir`."""
    quiet: bool = False
    """Print what is about to run and the results, and nothing in between."""


@dataclass(frozen=True)
class Config(Section):
    """The whole configuration of a run.

    Example:
        >>> config = load_config("configs/digits.yaml")
        >>> replace(config, optimizer=replace(config.optimizer, lr=0.05)).optimizer.lr
        0.05
    """

    model: ModelConfig
    data: DataConfig
    task: TaskConfig = TaskConfig()
    modules: ModulesConfig = ModulesConfig()
    head: HeadConfig = HeadConfig()
    information: InformationConfig = InformationConfig()
    reconcile: ReconcileConfig = ReconcileConfig()
    distill: DistillConfig = DistillConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    trace: TraceConfig = TraceConfig()
    run: RunConfig = RunConfig()
    engine: Literal["torch", "deepspeed"] = "torch"
    """What adds up gradients over replicas and steps the optimizers. deepspeed: as the section
    `deepspeed` says, each module by an engine of its own."""
    compile: bool = False
    """torch.compile of bodies and heads. Not with the estimator `exact`."""
    channels_last: bool = False
    """Channels of maps are last in memory: for tensor cores; mostly faster on CPUs, too."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """bfloat16: autocast, and boundaries in bfloat16; parameters stay float32. float16: autocast,
    and boundaries in float32; it needs `deepspeed.fp16`, which scales losses."""

    def on_stages(self, count: int) -> "Config":
        """Return this configuration with one module per stage, where it does not say K itself."""
        modules = self.modules
        if modules.count is not None or modules.cuts == "blocks" or isinstance(modules.cuts, tuple):
            return self
        return replace(self, modules=replace(modules, count=count))
