"""Randomness as a pure function."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline_local import seeds

PATHS = st.lists(st.one_of(st.integers(0, 99), st.text(max_size=5)), max_size=3)


@given(seed=st.integers(0, 2**63 - 1), path=PATHS, other=PATHS)
def test_a_path_names_one_seed(seed, path, other):
    first = seeds.derive(seed, *path)
    assert 0 <= first < 2**63
    assert first == seeds.derive(seed, *path)
    assert (first == seeds.derive(seed, *other)) == (path == other)


def test_generators_are_fresh():
    draws = [torch.rand(3, generator=seeds.generator(0, "order", e)) for e in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_reseeding_is_what_manual_seed_does():
    torch.manual_seed(seeds.derive(3, "body", 1))
    expected = torch.rand(4)
    seeds.reseed(torch.device("cpu"), 3, "body", 1)
    assert torch.equal(torch.rand(4), expected)
