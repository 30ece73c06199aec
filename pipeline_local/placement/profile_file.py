"""A saved profile: the costs of the parts of one network, measured on one device.

JSON: `version`, `setting` (of the network and its step), `device` (where it was measured; `memory`
and `workspaces` in bytes), `blocks`, `heads`, `information`, `classifier` (seconds per microbatch),
`link`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.device import Device
from pipeline_local.blueprint.run_plan import microbatch_size
from pipeline_local.config import HeadConfig, TaskConfig
from pipeline_local.errors import UserError, counted
from pipeline_local.placement.costs import Cost, Costs, Link, of_all_parts
from pipeline_local.user_input import new_file

VERSION = 1
"""The version of the file format."""

LOWER_BOUND = "the bandwidth of the link is a lower bound"
"""What is to be said where a link of the profile is used."""

_NEW: Mapping[str, Any] = {
    "head": {},
    "head.pool": HeadConfig.pool,
    "information.name": None,
    "information": {},
    "labels": [],
    "task.name": TaskConfig.name,
    "task": {},
    "reconcile": {},
    "optimizer": {},
}
"""The settings of older profiles, which do not have these keys."""


def setting(blueprint: Blueprint) -> dict[str, Any]:
    """Returns all that a profile depends on: if any of it differs, a new profile is needed."""
    config = blueprint.config
    return {
        "model.name": config.model.name,
        "model": config.model.args,
        "head.name": config.head.name,
        "head.depth": config.head.depth,
        "head.taper": config.head.taper,
        "head.pool": config.head.pool,
        "images": list(blueprint.info.sample_shape),
        "number of classes": blueprint.info.num_classes,
        "samples in a microbatch": microbatch_size(config),
        "modules.recompute": config.modules.recompute,
        "head": config.head.args,
        "information.name": config.information.name,
        "information": config.information.args,
        "labels": list(blueprint.info.label_shape),
        "task.name": config.task.name,
        "task": config.task.args,
        "reconcile.estimator": config.reconcile.estimator,
        "reconcile": config.reconcile.args,
        "optimizer.name": config.optimizer.name,
        "optimizer": config.optimizer.args,
        "compile": config.compile,
        "channels_last": config.channels_last,
        "precision": config.precision,
    }


def save(facts: Mapping[str, Any], output: Path) -> None:
    """Writes a profile into a new file.

    Raises:
        UserError: the file exists already or cannot be written.
    """
    new_file.write_json("--output", output, {"version": VERSION, **facts})


def load(path: Path, blueprint: Blueprint) -> Costs:
    """Reads a profile, and returns the costs of an optimizer step of this run.

    Raises:
        UserError: the file cannot be read, or is of another network or setting.
    """
    facts = _read(path)
    _refuse_another(path, facts, blueprint)
    parts = blueprint.config.train.microbatches
    names = [block.name for block in blueprint.backbone.blocks]
    terms = facts.get("information", [])
    try:
        device, link = facts["device"], _link(facts["link"])
        origin = _measured_on(f"{device['name']}, {counted(device['threads'], 'thread')}")
        return Costs(
            config=blueprint.config,
            unit="seconds",
            blocks=tuple(_cost(facts["blocks"][name], parts) for name in names),
            heads={(row["end"], row["copies"]): _cost(row, parts) for row in facts["heads"]},
            classifier=_cost(facts["classifier"], parts),
            information=of_all_parts(
                blueprint, {range(row["start"], row["stop"]): _cost(row, parts) for row in terms}
            ),
            link=link,
            device=Device(
                type=str(device.get("type", blueprint.device.type)),
                memory=None if device.get("memory") is None else int(device["memory"]),
                workspaces=int(device.get("workspaces", 0)),
            ),
            origin=f"{origin} ({LOWER_BOUND})" if link.at_least else origin,
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None


def doubts(costs: Costs, device: str) -> list[str]:
    """Returns a line for each reason to doubt what the first stage's costs predict.

    They may have been measured on another device than its own, or on a host too busy to measure
    its link.

    Args:
        costs: the costs on the device of the first stage.
        device: the name of that device.
    """
    threads = counted(torch.get_num_threads(), "thread") if device.startswith("cpu") else ""
    here, origin = f"{device}, {threads}", costs.origin
    lines = []
    if not origin.startswith(_measured_on(here)):
        where = f"not on {here.rstrip(', ')}"
        lines.append(f"modules.profile: {origin}, {where}: predictions may be wrong")
    if costs.link is not None and costs.link.at_least:
        lines.append(
            f"modules.profile: {LOWER_BOUND}, as the host was too busy to measure it: messages may"
            f" take less time; measure again with pipeline-local profile"
        )
    return lines


def _measured_on(where: str) -> str:
    """Returns the origin of costs, for display."""
    return f"measured on {where}"


def row(cost: Cost | Link) -> dict[str, float]:
    """Returns a cost or a link as it is saved in the file."""
    return asdict(cost)


def _cost(facts: Mapping[str, Any], parts: int) -> Cost:
    """Returns the cost of all microbatches, which share one update."""
    seconds = {act: float(facts[act]) for act in ("forward", "backward", "second", "update")}
    if not all(0 <= value < math.inf for value in seconds.values()):
        raise ValueError("no such time")
    return Cost(
        forward=parts * seconds["forward"],
        backward=parts * seconds["backward"],
        second=parts * seconds["second"],
        update=seconds["update"],
    )


def _link(facts: Mapping[str, Any]) -> Link:
    latency, speed = float(facts["latency_seconds"]), float(facts["bytes_per_second"])
    if not (0 <= latency < math.inf and 0 < speed < math.inf):
        raise ValueError("no such link")
    return Link(latency, speed, facts.get("at_least") is True)  # older profiles do not say


def _read(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "it is not JSON"
        raise UserError(
            f"modules.profile: {path} cannot be read ({reason}); make one with"
            f" pipeline-local profile, or set modules.profile=null"
        ) from None
    if not isinstance(facts, dict) or not isinstance(facts.get("setting"), dict):
        raise _damaged(path, "it has no setting")
    if facts.get("version") != VERSION:
        raise UserError(
            f"modules.profile: {path} has version {facts.get('version')!r}, this program reads"
            f" {VERSION}; measure again with pipeline-local profile"
        )
    return facts


def _refuse_another(path: Path, facts: Mapping[str, Any], blueprint: Blueprint) -> None:
    wanted = json.loads(json.dumps(setting(blueprint)))
    got = {**_NEW, **facts["setting"]}
    if other := [key for key, value in wanted.items() if got.get(key) != value]:
        key = other[0]
        raise UserError(
            f"modules.profile: {path} was measured with {key}={got.get(key)}, this run has"
            f" {wanted[key]}; measure again with pipeline-local profile"
        )


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"modules.profile: {path} is damaged ({reason}); make another with pipeline-local profile"
    )
