"""The placement: the modules that each stage holds, and their costs on its device.

Modules fix the mathematics; a placement only says where they run. It never changes a result.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.config import Config
from pipeline_local.errors import UserError, counted
from pipeline_local.gpus.utilization import Utilization
from pipeline_local.placement import balance, partition, profile_file
from pipeline_local.placement.costs import Costs, ModuleCost, by_flops, training_flops
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.summary import StageTimes


def costs_by_device(blueprint: Blueprint) -> tuple[Costs, ...]:
    """Returns the costs of the network's parts as measured on each device of `modules.profile`,
    else in FLOPs; a single entry if all devices are alike.

    Raises:
        UserError: a profile cannot be read, or is of another network or setting.
    """
    paths = blueprint.config.modules.profile
    if paths is None:
        return (by_flops(blueprint),)
    paths = (paths,) if isinstance(paths, Path) else paths
    return tuple(profile_file.load(path, blueprint) for path in paths)


def spread(devices: tuple[Costs, ...], count: int) -> tuple[Costs, ...]:
    """Returns the costs on the device of each of `count` modules, spread evenly over devices."""
    return tuple(devices[k * len(devices) // count] for k in range(count))


def per_stage(devices: tuple[Costs, ...], num_stages: int) -> tuple[Costs, ...]:
    """Returns the costs on the device of each stage.

    Raises:
        UserError: there are profiles of several devices, and not one for each stage.
    """
    if len(devices) not in (1, num_stages):
        raise UserError(
            f"modules.profile: give one file for all stages or one for each, got"
            f" {len(devices)} for {num_stages}"
        )
    return devices if len(devices) == num_stages else devices * num_stages


def mesh_of(config: Config, num_stages: int) -> Mesh:
    """Returns the ranks of so many stages.

    Raises:
        UserError: `parallel.replicas` has numbers for other stages.
    """
    mesh = Mesh.of(replace(config.parallel, stages=num_stages))
    if mesh.num_stages != num_stages:
        raise UserError(
            f"parallel.replicas: got {list(mesh.replicas)} for {counted(num_stages, 'stage')}; give"
            f" a number for each stage, or one for all"
        )
    return mesh


@dataclass(frozen=True)
class Placement:
    """The assignment of a blueprint's modules to stages.

    Attributes:
        blueprint: the run.
        stages: the modules of each stage, in order.
    """

    blueprint: Blueprint
    stages: tuple[range, ...]

    @classmethod
    def of(cls, blueprint: Blueprint, num_stages: int) -> "Placement":
        """Places the modules on `num_stages` stages, as `parallel.cuts` says.

        Raises:
            UserError: the modules do not fit that many stages.
        """
        stages = partition.stages_of(
            len(blueprint.modules),
            num_stages,
            blueprint.config.parallel.cuts,
            lambda: balance.best_stages(
                blueprint,
                per_stage(costs_by_device(blueprint), num_stages),
                mesh_of(blueprint.config, num_stages).replicas,
            ),
        )
        return cls(blueprint, tuple(stages))

    @property
    def mesh(self) -> Mesh:
        """The ranks of the stages."""
        return mesh_of(self.blueprint.config, len(self.stages))

    @cached_property
    def costs(self) -> tuple[Costs, ...]:
        """The costs on the device of each stage.

        Raises:
            UserError: there are profiles of another number of devices.
        """
        return per_stage(costs_by_device(self.blueprint), len(self.stages))

    @property
    def module_costs(self) -> list[list[ModuleCost]]:
        """The costs of the modules of each stage on its device, for a whole batch."""
        modules = self.blueprint.modules
        return [
            [on_device.module(k, len(modules), modules[k]) for k in part]
            for on_device, part in zip(self.costs, self.stages, strict=True)
        ]

    @property
    def stage_costs(self) -> list[float]:
        """The cost of a step of each stage on each of its replicas."""
        each = zip(self.module_costs, self.mesh.replicas, strict=True)
        return [sum(cost.shared(replicas) for cost in stage) for stage, replicas in each]

    def utilization(self, rank_info: RankInfo) -> Utilization:
        """Returns the meter of a rank's model FLOPs utilization."""
        stage = self.mesh.stage(rank_info.rank)
        return Utilization(
            rank_info.device,
            rank_info.device_name,
            self.blueprint.config.precision,
            lambda: training_flops(self.blueprint, self.stages[stage]) / self.mesh.replicas[stage],
        )

    def stage_times(self, steps: int) -> StageTimes | None:
        """Returns how long each stage should compute per step; None without a profile for each.

        Args:
            steps: the number of steps of the run that it will be compared with.
        """
        profile = self.blueprint.config.modules.profile
        files = 1 if profile is None or isinstance(profile, Path) else len(profile)
        if profile is None or files not in (1, len(self.stages)):
            return None
        return StageTimes(self.stage_costs, steps)
