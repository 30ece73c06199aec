"""The order of GPUs along the links of a host."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_local.gpus.links import order, read
from pipeline_local.ranks.mesh import Mesh
from tests.gpus import hosts


def found(host):
    nvml = hosts.FakeNvml(host)
    return read(nvml, range(host.count))


def between(links, path):
    return [links[a][b].text for a, b in itertools.pairwise(path)]


def chain(links, count):
    return order(links, count, list(itertools.pairwise(range(count))))


def test_all_equal_links_leave_gpus_as_they_are_numbered():
    links = found(hosts.h100())
    texts = {link.text for a, row in enumerate(links) for b, link in enumerate(row) if a != b}
    assert texts == {"NVLink x18"}
    assert chain(links, 8) == tuple(range(8))
    assert chain(links, 3) == (0, 1, 2)


def test_a_cube_mesh_is_walked_along_its_double_links():
    links = found(hosts.dgx1())
    assert links[0][1].text == "NVLink x1"
    assert links[0][5].text == "between NUMA nodes"
    assert chain(links, 8) == (0, 3, 2, 1, 5, 6, 7, 4)
    assert set(between(links, chain(links, 8))) == {"NVLink x2"}
    assert chain(links, 4) == (0, 3, 2, 1), "the best of all, not the first four"


def test_pairs_with_bridges_stay_together_and_sockets_are_crossed_once():
    links = found(hosts.bridges())
    path = chain(links, 8)
    assert path == (0, 3, 1, 2, 4, 7, 5, 6)
    assert between(links, path)[:4] == [
        *("NVLink x4", "one NUMA node", "NVLink x4"),
        "between NUMA nodes",
    ]


def test_without_peer_access_the_bus_still_counts():
    links = found(hosts.pcie())
    path = chain(links, 8)
    assert path == (0, 2, 1, 3, 4, 6, 5, 7)
    assert between(links, path)[0] == "PCIe switch without peer access"


def test_nvlinks_that_are_switched_off_do_not_count():
    from pynvml import NVML_P2P_CAPS_INDEX_NVLINK

    host = hosts.Host(hosts.halves, switched=18, refused=(NVML_P2P_CAPS_INDEX_NVLINK,))
    assert found(host)[0][1].text == "one NUMA node without peer access"


@given(st.data())
def test_no_order_is_better(data):
    size = data.draw(st.integers(2, 5))
    count = data.draw(st.integers(1, size))
    speeds = {pair: data.draw(st.integers(0, 3)) for pair in itertools.combinations(range(size), 2)}
    links = [[speeds.get((min(a, b), max(a, b)), 0) for b in range(size)] for a in range(size)]
    pairs = [p for p in itertools.permutations(range(count), 2) if data.draw(st.booleans())]

    def slowest_first(path):
        return sorted(links[path[a]][path[b]] for a, b in pairs)

    paths = list(itertools.permutations(range(size), count))
    best = max(map(slowest_first, paths))
    assert order(links, count, pairs) == min(p for p in paths if slowest_first(p) == best)


def test_replicas_and_stages_share_the_fast_links():
    """Two stages of two replicas on a cube mesh: no edge goes between the halves of the host."""
    links = found(hosts.dgx1())
    pairs = list(Mesh((2, 2)).neighbours())
    assert sorted(pairs) == [(0, 1), (0, 2), (1, 3), (2, 3)]
    path = order(links, 4, pairs)
    assert {links[path[a]][path[b]].text for a, b in pairs} == {"NVLink x1", "NVLink x2"}
    assert path == (0, 1, 3, 2)


@pytest.mark.parametrize("count", [16, 9])
def test_many_gpus_are_chained_to_the_nearest(count):
    """Sixteen GPUs in pairs (0, 8), (1, 9), ...: too many orders to try."""
    links = [[int(abs(a - b) == 8) for b in range(16)] for a in range(16)]
    path = chain(links, count)
    assert len(set(path)) == count
    assert sum(links[a][b] for a, b in itertools.pairwise(path)) == count // 2


def test_one_rank_takes_the_first():
    assert chain([[0]], 1) == (0,)
