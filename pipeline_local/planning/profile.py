"""Measure what blocks, heads and messages cost on the device in use, for `modules.profile`.

Each block, and each head that a cut could put behind it, runs real training steps as the only part
of a module, so that the timed acts are those of training.
"""

import gc
import math
import platform
from pathlib import Path
from typing import Any

import torch

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.run_plan import microbatch_size
from pipeline_local.config import Config
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import UserError, counted
from pipeline_local.placement import profile_file
from pipeline_local.placement.costs import Link, possible_heads, possible_terms
from pipeline_local.planning.measure_link import LinkBenchmark
from pipeline_local.planning.part_timer import PartTimer
from pipeline_local.ranks.join import joined
from pipeline_local.ranks.p2p import by_device
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.wall_time import settle
from pipeline_local.user_input import new_file


def files(output: Path, num_ranks: int) -> list[Path]:
    """Return the file of each rank's profile: OUTPUT, or OUTPUT-RANK with several ranks."""
    if num_ranks == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{k}{output.suffix}") for k in range(num_ranks)]


def check(runs: int, output: Path, num_ranks: int) -> None:
    """Check the options before anything is measured.

    Raises:
        UserError: there is no repetition, or a file exists already.
    """
    if runs < 1:
        raise UserError(f"--runs: at least 1, got {runs}")
    for path in files(output, num_ranks):
        new_file.check("--output", path)


def profile(config: Config, info: DataInfo, runs: int, output: Path, rank_info: RankInfo) -> str:
    """Measure all parts and save a profile; all ranks do so at once, each on its own device.

    Args:
        config: the configuration of network, heads, batch and precision.
        info: facts of the data; images are drawn at random.
        runs: repetitions of each part; medians are kept.
        output: a new file.
        rank_info: this rank; it computes with torch's current number of threads.

    Returns:
        A line to print on the first rank; "" on all others.

    Raises:
        UserError: there is no repetition, or the file exists already or cannot be written.
    """
    check(runs, output, rank_info.world_size)
    own = files(output, rank_info.world_size)[rank_info.rank]
    with joined(rank_info, config.parallel) as store:
        if not rank_info.located:
            rank_info = rank_info.on_host(store).placed(config.parallel)
            rank_info.prepare(config.parallel)
        facts = measure(config, info, runs, rank_info)
    profile_file.save(facts, own)
    if rank_info.rank:
        return ""
    names = ",".join(map(str, files(output, rank_info.world_size)))
    return (
        f"{counted(len(facts['blocks']), 'block')}, {counted(len(facts['heads']), 'head')}"
        f" measured on"
        f" {facts['device']['name']}; use it with modules.profile="
        + (names if rank_info.world_size == 1 else f"[{names}]")
    )


def measure(config: Config, info: DataInfo, runs: int, rank_info: RankInfo) -> dict[str, Any]:
    """Return this rank's profile, as `profile_file` saves it. All ranks call it together."""
    parts = PartTimer(config, info, runs, rank_info.device)
    blueprint = parts.blueprint
    blocks = blueprint.backbone.blocks
    facts = {
        "setting": profile_file.setting(blueprint),
        "runs": runs,
        "blocks": {
            block.name: profile_file.row(cost)
            for block, cost in zip(blocks, parts.blocks(), strict=True)
        },
        "heads": [
            {"end": end, "copies": copies, **profile_file.row(parts.head(head, end))}
            for (end, copies), head in possible_heads(blueprint)
        ],
        "information": [
            {"start": part.start, "stop": part.stop, **profile_file.row(parts.term(term, part))}
            for part, term in possible_terms(blueprint)
        ],
        "classifier": profile_file.row(parts.classifier()),
        "link": profile_file.row(_link(blueprint, runs, rank_info)),
    }
    return {**facts, "device": _device(rank_info)}  # last, as it reports what is still allocated


def _link(blueprint: Blueprint, runs: int, rank_info: RankInfo) -> Link:
    """The link, for messages as large as a microbatch's largest activations between blocks."""
    config = blueprint.config
    samples = microbatch_size(config)
    size = samples * blueprint.wire_format.activations.itemsize
    num_bytes = size * max(map(math.prod, blueprint.output_shapes[:-1]), default=1)
    if rank_info.world_size == 1:
        return LinkBenchmark(num_bytes, runs, torch.device("cpu")).between_threads()
    direct = by_device(rank_info.p2p_kind(config.parallel))
    device = rank_info.device if direct else torch.device("cpu")
    return LinkBenchmark(num_bytes, runs, device).between_ranks(
        rank_info.rank, rank_info.world_size
    )


def _device(rank_info: RankInfo) -> dict[str, Any]:
    device = rank_info.device
    is_gpu = device.type != "cpu"
    own = is_gpu and rank_info.local_world_size <= torch.accelerator.device_count()
    return {
        "name": rank_info.device_name,
        "type": device.type,
        "memory": _memory(device) if own else None,
        "workspaces": _left_behind(device) if is_gpu else 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _left_behind(device: torch.device) -> int:
    """Bytes that are still allocated when no tensor is left: the workspaces of libraries, such as
    cuBLAS's for the threads of forward and backward passes."""
    gc.collect()
    settle(device)
    return int(torch.accelerator.memory_allocated(device))


def _memory(device: torch.device) -> int | None:
    try:
        return int(torch.accelerator.get_memory_info(device)[1])
    except RuntimeError:  # the driver does not report it
        return None
