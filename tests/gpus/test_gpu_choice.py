"""Which GPU a rank takes: along the links, as a user says it, or as numbered."""

from itertools import pairwise

import pynvml
import pytest
import torch

from pipeline_local.config import ParallelConfig
from pipeline_local.errors import UserError
from pipeline_local.gpus.choice import Choice, check, choose
from pipeline_local.ranks.rank import RankInfo
from tests.gpus import hosts
from tests.gpus.hosts import FakeNvml, install


def places(config, count=8):
    ranks = [RankInfo(r, count, r, count, launched=True).placed(config) for r in range(count)]
    return ranks, [rank.device for rank in ranks]


def cuda(*numbers):
    return [torch.device("cuda", number) for number in numbers]


def test_ranks_follow_the_links_and_say_so(monkeypatch):
    nvml = install(monkeypatch, FakeNvml(hosts.dgx1()))
    ranks, devices = places(ParallelConfig())
    assert devices == cuda(0, 3, 2, 1, 5, 6, 7, 4)
    assert (
        ranks[0]
        .explain(ParallelConfig())
        .endswith(
            "; GPUs 0, 3, 2, 1, 5, 6, 7, 4 in the order of ranks"
            " (along the fastest links: NVLink x2)"
        )
    )
    assert nvml.opened == 0, "it is closed again"


def test_each_link_is_named_where_they_differ(monkeypatch):
    install(monkeypatch, FakeNvml(hosts.bridges()))
    assert str(choose(3, None, [(0, 1), (1, 2)])) == (
        "GPUs 0, 1, 2 in the order of ranks (along the fastest links: NVLink x4, one NUMA node)"
    )


def test_torch_may_number_gpus_otherwise_than_nvml(monkeypatch):
    """CUDA_VISIBLE_DEVICES=4,2,0,3: torch's 0 and 2 have the double link, as 4 and 0 have."""
    install(monkeypatch, FakeNvml(hosts.dgx1()), visible=[4, 2, 0, 3])
    assert choose(4, None, [(0, 1), (1, 2), (2, 3)]).devices == (0, 2, 3, 1)


def test_a_device_is_also_found_by_its_place_on_the_bus(monkeypatch):
    unknown = pynvml.NVML_ERROR_NOT_FOUND
    install(monkeypatch, FakeNvml(hosts.dgx1(), nvmlDeviceGetHandleByUUID=unknown))
    assert choose(8, None, list(pairwise(range(8)))).devices == (0, 3, 2, 1, 5, 6, 7, 4)


def test_a_rank_that_sees_one_gpu_only_takes_it(monkeypatch):
    """Slurm's --gpus-per-task and Kubernetes show each rank its own."""
    nvml = install(monkeypatch, FakeNvml(hosts.dgx1(), nvmlInit=pynvml.NVML_ERROR_UNKNOWN), [5])
    rank = RankInfo(3, 8, 3, 8, launched=True).placed(ParallelConfig())
    assert (rank.chosen, rank.device) == (None, torch.device("cuda", 0))
    assert nvml.opened == 0


@pytest.mark.parametrize(
    "broken", ["nvmlInit", "nvmlDeviceGetTopologyCommonAncestor", "nvmlDeviceGetHandleByUUID"]
)
def test_where_nvml_does_not_answer_gpus_are_as_numbered(monkeypatch, broken):
    nvml = install(monkeypatch, FakeNvml(hosts.dgx1(), **{broken: pynvml.NVML_ERROR_UNKNOWN}))
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByPciBusId", None)
    assert places(ParallelConfig())[1] == cuda(*range(8))
    assert nvml.opened == 0


def test_without_gpus_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert choose(2, None, [(0, 1)]) is None
    rank = RankInfo(0, 2, 0, 2, launched=True).placed(ParallelConfig())
    assert "GPU" not in rank.explain(ParallelConfig())


def test_the_users_order_comes_first(monkeypatch):
    install(monkeypatch, FakeNvml(hosts.dgx1()))
    config = ParallelConfig(devices=(6, 1, 2))
    ranks, devices = places(config, count=3)
    assert devices == cuda(6, 1, 2)
    assert (
        ranks[0].explain(config).endswith("; GPUs 6, 1, 2 in the order of ranks (parallel.devices)")
    )
    assert RankInfo().placed(ParallelConfig(devices=(6,))).device == torch.device("cuda", 6)


@pytest.mark.parametrize("wanted", [(0, 8), (1, 1), (3,), ()])
def test_gpus_that_are_not_there_are_refused(monkeypatch, wanted):
    install(monkeypatch, FakeNvml(hosts.h100()))
    with pytest.raises(UserError, match=r"for each of the 2 ranks of this host.* from 0 to 7"):
        check(2, wanted)
    rank = RankInfo(1, 2, 1, 2, launched=True).placed(ParallelConfig(devices=wanted))
    assert rank.chosen is None, "the first rank refuses, in one line"
    with pytest.raises(UserError, match=r"parallel\.devices"):
        rank.p2p_kind(ParallelConfig(devices=wanted))


def test_gpus_of_a_host_without_any_are_refused(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=r"parallel.devices=\[1, 0\] names GPUs, but torch sees none"
    ):
        check(2, (1, 0))


def test_a_choice_of_one():
    assert str(Choice((3,), "parallel.devices")) == "GPU 3 in the order of ranks (parallel.devices)"
