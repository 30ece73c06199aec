import pytest

from pipeline_local.config import ParallelConfig
from pipeline_local.errors import UserError, place_of
from pipeline_local.ranks.mesh import Mesh, chain, placing


def test_a_chain_has_one_rank_for_each_stage():
    mesh = chain(3)
    assert [mesh.stage(rank) for rank in range(3)] == [0, 1, 2]
    assert list(mesh.edges()) == [(0, 1), (1, 2)]
    assert not mesh.is_replicated
    assert [mesh.rank(1, microbatch) for microbatch in range(3)] == [1, 1, 1]
    assert mesh.name(2) == "[stage 2 | rank 2]"


def test_ranks_of_a_stage_are_neighbours():
    mesh = Mesh((1, 2, 1))
    assert (mesh.num_stages, mesh.num_ranks, mesh.parts) == (3, 4, 2)
    assert [(mesh.stage(rank), mesh.replica(rank)) for rank in range(4)] == [
        (0, 0),
        (1, 0),
        (1, 1),
        (2, 0),
    ]
    assert [mesh.name(rank) for rank in (1, 3)] == [
        "[stage 1, replica 0 | rank 1]",
        "[stage 2 | rank 3]",
    ]


@pytest.mark.parametrize("replicas", [(2, 2), (1, 2, 1), (2, 3), (4, 2, 6), (1, 1, 3)])
def test_edges_are_those_that_microbatches_cross(replicas):
    """Each once, and none that no microbatch takes."""
    mesh = Mesh(replicas)
    edges = list(mesh.edges())
    crossed = {
        (mesh.rank(stage, microbatch), mesh.rank(stage + 1, microbatch))
        for stage in range(mesh.num_stages - 1)
        for microbatch in range(mesh.parts)
    }
    assert len(edges) == len(set(edges))
    assert set(edges) == crossed


@pytest.mark.parametrize("replicas", [(2, 2), (2, 3), (4, 2)])
def test_every_microbatch_is_one_ranks(replicas):
    mesh = Mesh(replicas)
    for stage in range(mesh.num_stages):
        owners = [mesh.rank(stage, microbatch) for microbatch in range(mesh.parts)]
        shares = {rank: owners.count(rank) for rank in mesh.ranks(stage)}
        assert set(shares.values()) == {mesh.parts // replicas[stage]}


def test_the_configuration_says_the_mesh():
    assert Mesh.of(ParallelConfig(stages=2, replicas=3)) == Mesh((3, 3))
    assert Mesh.of(ParallelConfig(replicas=2), ranks=6) == Mesh((2, 2, 2))
    assert Mesh.of(ParallelConfig(replicas=(1, 2)), ranks=9) == Mesh((1, 2))
    assert Mesh.of(ParallelConfig()) == Mesh((1,))


@pytest.mark.parametrize("error", [UserError("it is wrong"), MemoryError(), KeyboardInterrupt()])
def test_an_error_says_where_it_was_raised(error):
    with pytest.raises(type(error)) as found, placing(chain(9), 2), placing(Mesh((1, 2)), 2):
        raise error
    assert place_of(found.value) == "[stage 1, replica 1 | rank 2]"
