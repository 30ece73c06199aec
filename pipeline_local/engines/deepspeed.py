"""The DeepSpeed engine: ZeRO over the replicas of a module's stage, with offload, bf16 and fp16.

DeepSpeed sees only the gradients of its own backward pass. So each module's engine gets a network
whose output is the inner product of the parameters with the gradients that the module has computed:
its gradient is just those. DeepSpeed adds them up over the replicas, clips, and steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline_local.engines import gradients as sums
from pipeline_local.engines import optimizer as optimizers
from pipeline_local.engines.deepspeed_library import asked_for, calm, configuration, imported
from pipeline_local.engines.gradients import Gradient
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.loss_scale import LossScale, parted
from pipeline_local.engines.optimizer import MakeOptimizer
from pipeline_local.engines.replicas import Replicas, replace
from pipeline_local.engines.settings import EngineSettings
from pipeline_local.errors import UserError, type_and_line


class DeepSpeedEngine:
    """The engine of one module, with DeepSpeed's own as soon as a step begins.

    Until then the weights are those of an ordinary module, which can be loaded.

    Args:
        params: parameters to train, in the order in which gradients come.
        make: makes the optimizer from them.
        guard: notes the updates that DeepSpeed refuses as they are not finite.
        replicas: of the module's stage.
        clip: largest gradient norm; None: any.
        settings: with the keys of the configuration's section `deepspeed`.
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        make: MakeOptimizer,
        guard: Guard,
        replicas: Replicas,
        clip: float | None,
        settings: EngineSettings,
    ) -> None:
        self._params = params
        self._guard = guard
        self._clip = clip
        self._section = settings.deepspeed or {}
        self._settings = settings
        self.replicas = replicas
        self.optimizer = make(params)
        self._rates = optimizers.rates(self.optimizer)
        self._groups = [list(group["params"]) for group in self.optimizer.param_groups]
        self._state: Mapping[str, Tensor] = optimizers.tensors(self.optimizer)
        self._reached: set[int] = set()
        self._reduced: Callable[[], None] | None = None
        self._engine: Any = None  # DeepSpeed is imported in functions alone
        self._scale: LossScale | None = None

    gradients: Sequence[Gradient] = ()
    """None: DeepSpeed has them as soon as they are added."""

    @property
    def scale(self) -> float:
        """What the loss of this step is multiplied by before it is differentiated."""
        return self._scale.value if self._scale else 1.0

    def begin(self) -> None:
        """Prepare for a step, before its first forward pass; all replicas call it together."""
        if self._engine is None:
            with self.replicas.waiting():
                self._create()
        self._guard.begin()

    def add(self, gradients: Sequence[Gradient], microbatches: int) -> None:
        """Add one microbatch's gradients, one per parameter, to the mean over all of them.

        They are those of the loss times `scale`.
        """
        self._reached |= {i for i, gradient in enumerate(gradients) if gradient is not None}
        share = sums.divided(gradients, microbatches) if microbatches > 1 else gradients
        if sums.known(share):  # all of its head may be frozen
            self._hand_over(share)

    def reduce(self, measured: Sequence[Tensor], statistics: Sequence[Tensor]) -> None:
        """Begin to add up tensors of several replicas; of gradients, DeepSpeed takes care.

        Args:
            measured: tensors that are replaced by their sums.
            statistics: tensors that are replaced by their means.
        """
        shares = map(self.replicas.share, statistics)
        wait = self.replicas.sum([*measured, *shares])
        self._reduced = lambda: replace([*measured, *statistics], wait())

    def step(self, lr: float, loss: Tensor, number: int) -> dict[str, Tensor]:
        """Run one optimizer step with the gradients of all microbatches, if they are finite.

        Args:
            lr: learning rate; groups with a rate of their own keep its ratio.
            loss: of this step, a scalar.
            number: of this step, from 0.

        Returns:
            Metrics by name.

        Raises:
            UserError: a parameter has no gradient.
        """
        if self._reduced is not None:
            self._reduced()
            self._reduced = None
        self._refuse_missing()
        finite = bool(loss.isfinite())  # on all replicas alike
        if not finite:  # DeepSpeed knows of gradients alone
            spoilt = [torch.full_like(self._params[0], torch.nan), *[None] * len(self._params[1:])]
            self._hand_over(spoilt)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * lr
        with self.replicas.waiting():
            self._engine.step()
        metrics = self._note(finite, number, loss.device)
        if self._clip is not None:
            norm = self._engine.get_global_grad_norm()
            metrics["gradient_norm"] = torch.as_tensor(norm, device=loss.device)
        return metrics

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state as `optimizer.tensors` does; all replicas call it together,
        and the first one gets all of it."""
        if self._engine is None:
            return dict(self._state)
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        found = self._scale.tensors() if self._scale and self.replicas.index == 0 else {}
        for index, (parameter, whole) in enumerate(self._places()):
            for quantity, value in self.optimizer.state[whole].items():
                if not isinstance(value, Tensor):
                    continue
                if value.shape == whole.shape:
                    value = safe_get_full_optimizer_state(parameter, quantity)
                if self.replicas.index == 0:
                    # a count is one for all parameters of a group, and must not stay so
                    found[f"{index}.{quantity}"] = value.to("cpu", copy=True)
        return found

    def weights(self) -> dict[nn.Parameter, Tensor]:
        """Return the weights in float32 of those parameters that are rounded copies of them; all
        replicas call it together."""
        from deepspeed.utils import safe_get_full_fp32_param

        rounded = [p for p in self._params if p.dtype != torch.float32]
        return {p: safe_get_full_fp32_param(p) for p in rounded}

    def load(self, named: Mapping[str, Tensor]) -> None:
        """Restore the optimizer's state from the result of `tensors`, before the first step."""
        assert self._engine is None, "a module is loaded before it is trained"
        self._state = dict(named)

    def _hand_over(self, gradients: Sequence[Gradient]) -> None:
        """Give DeepSpeed more of the gradients; at stage 2 it adds them up over the replicas."""
        with self.replicas.waiting():
            self._engine.backward(self._engine(gradients, self.scale))

    def _note(self, finite: bool, number: int, device: torch.device) -> dict[str, Tensor]:
        """Tell the guard whether DeepSpeed has refused the step; metrics of the scale, if there is
        one."""
        refused = torch.tensor(float(not self._engine.was_step_applied()), device=device)
        self._guard.note(refused, number, cured=finite and bool(self._scale and self._scale.falls))
        if self._scale is None:
            return {}
        used = torch.tensor(self._scale.value, device=device)
        self._scale.proceed()
        return {"loss_scale": used, "skipped_updates": self._guard.skipped}

    def _places(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter in the optimizer's order, with the tensor of its group's elements on this
        replica."""
        for params, group in zip(self._groups, self.optimizer.param_groups, strict=True):
            yield from ((parameter, group["params"][0]) for parameter in params)

    def _create(self) -> None:
        """Make DeepSpeed's engine, with the state and the weights of before."""
        device = self._params[0].device
        deepspeed = imported(device)
        from deepspeed.utils import safe_set_full_fp32_param

        self._refuse_unfit()
        exact = [p.detach().clone() for p in self._params] if self._settings.rounds else []
        self.optimizer.state.clear()  # that of whole parameters
        size = sum(p.numel() for p in self._params)
        try:
            with calm(), asked_for(device):
                self._engine, *_ = deepspeed.initialize(
                    model=_Carrier(self._params),
                    optimizer=self.optimizer,
                    mpu=_DataParallel(self._group(device)),
                    dist_init_required=False,
                    config=configuration(self._section, self._clip, size),
                )
        except dist.DistError:
            raise  # a replica is gone
        except Exception as error:  # DeepSpeed raises many types
            raise UserError(
                f"deepspeed: {type_and_line(error)}; change the section deepspeed, or use"
                f" engine=torch"
            ) from error
        self.optimizer = self._engine.optimizer.optimizer
        if self._settings.scales:
            self._scale = LossScale(self._engine.optimizer)
            self._guard.remedy += self._scale.remedy
        for parameter, value in zip(self._params, exact, strict=False):
            safe_set_full_fp32_param(parameter, value)
        self._restore()

    def _refuse_unfit(self) -> None:
        """DeepSpeed cuts all parameters of a group, put end to end, into parts of one length."""
        if not all(parameter.dim() for parameter in self._params):
            raise UserError(
                "engine=deepspeed takes no parameter without axes; give it the shape [1], or use"
                " engine=torch"
            )
        from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

        kind = type(self.optimizer)
        known = kind in (torch.optim.SGD, *ZERO_SUPPORTED_OPTIMIZERS)
        if not known and not self._section.get("zero_allow_untested_optimizer"):
            raise UserError(
                f"engine=deepspeed cuts parameters anywhere, and {kind.__name__} may not update"
                f" each element by itself; if it does, set"
                f" deepspeed.zero_allow_untested_optimizer=true, else use engine=torch"
            )

    def _restore(self) -> None:
        """Give DeepSpeed's optimizer the state that was there before it."""
        from deepspeed.utils import safe_set_full_optimizer_state

        named, scale = parted(self._state)
        self._state = {}
        if self._scale and scale is not None:
            self._scale.load(scale)
        places = list(self._places())
        whole_sized = []
        for name, value in named.items():
            if name.startswith(optimizers.NUMBER):
                raise UserError(
                    f"engine=deepspeed keeps an optimizer's state in tensors, and the checkpoint"
                    f" has a number beside ({name.removeprefix(optimizers.NUMBER)}); use"
                    f" engine=torch"
                )
            number, quantity = name.split(".")
            parameter, whole = places[int(number)]
            state = self.optimizer.state[whole]
            if value.shape == parameter.shape:
                state.setdefault(quantity, torch.zeros_like(whole))
                whole_sized.append((parameter, value, quantity))
            elif not torch.equal(state.setdefault(quantity, value.clone()), value):
                raise UserError(
                    f"engine=deepspeed keeps one {quantity} for all parameters of a group, and"
                    f" those of the checkpoint differ ({state[quantity]} and {value}); use"
                    f" engine=torch"
                )
        self._link()
        for parameter, value, quantity in whole_sized:
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), quantity)

    def _link(self) -> None:
        """DeepSpeed finds a parameter's state once, after the first group's first step, when that
        of other groups is not there yet."""
        self._engine.optimizer._hp_optimizer_states_linked = False
        self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _group(self, device: torch.device) -> dist.ProcessGroup:
        """The replicas' group; a single one gets a group of its own."""
        if self.replicas.group is not None:
            return self.replicas.group
        backend = dist.get_default_backend_for_device(device)
        own = dist.new_group([dist.get_rank()], backend=backend, use_local_synchronization=True)
        assert isinstance(own, dist.ProcessGroup), "this rank is in it"
        return own

    def _refuse_missing(self) -> None:
        """A parameter without a gradient would decay, and move by its momentum."""
        reached, self._reached = self._reached, set()
        if missing := len(self._params) - len(reached):
            raise UserError(
                f"engine=deepspeed updates all parameters of a module, and the loss does not depend"
                f" on {missing} of {len(self._params)}; freeze them (requires_grad=False), or use"
                f" engine=torch"
            )


class _Carrier(nn.Module):
    """A network whose gradients are given."""

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.params = nn.ParameterList(params)

    def forward(self, gradients: Sequence[Gradient], scale: float = 1.0) -> Tensor:
        """Return a scalar whose gradient at each parameter, times the scale, is the given one.

        The scale is divided out in float32: float16 may not hold it.
        """
        pairs = zip(self.params, gradients, strict=True)
        products = [(p * g).sum(dtype=torch.float32) for p, g in pairs if g is not None]
        return torch.stack(products).sum() / scale


class _DataParallel:
    """What DeepSpeed calls a model parallelism unit: here the ranks that replicate a module."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._group

    def get_data_parallel_world_size(self) -> int:
        return self._group.size()

    def get_data_parallel_rank(self) -> int:
        return self._group.rank()

    def get_model_parallel_group(self) -> None:
        """There is none."""

    def get_model_parallel_world_size(self) -> int:
        return 1

    def get_model_parallel_rank(self) -> int:
        return 0
