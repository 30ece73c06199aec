"""Randomness as a pure function."""

import random

import numpy as np
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


def drawn():
    return random.random(), np.random.rand(), torch.rand(()).item(), random.gauss(0, 1)


def test_every_global_generator_is_seeded():
    def draw(step):
        seeds.reseed(torch.device("cpu"), 3, "body", step)
        return drawn()

    assert draw(1) == draw(1)
    assert not set(draw(1)) & set(draw(2))


def test_generators_are_given_back():
    np.random.randn()  # leaves half of a pair behind
    with seeds.generators_kept():
        once = drawn(), np.random.randn()
    with seeds.generators_kept():
        seeds.reseed(torch.device("cpu"), 3)
    assert (drawn(), np.random.randn()) == once


def test_a_branch_can_be_repeated():
    seeds.reseed(torch.device("cpu"), 3)
    seed = seeds.branch()
    first, second = drawn(), seeds.branch()
    seeds.reseed(torch.device("cpu"), 3)
    assert (seeds.branch(), drawn()[:2], seeds.branch()) == (seed, first[:2], second)
    seeds.seed_host(seed)
    assert drawn()[:2] == first[:2]


def test_reseeding_is_what_manual_seed_does():
    torch.manual_seed(seeds.derive(3, "body", 1))
    expected = torch.rand(4)
    seeds.reseed(torch.device("cpu"), 3, "body", 1)
    assert torch.equal(torch.rand(4), expected)
