"""The order of the data: permutations, seekable."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline_local.data.sampler import StepSampler, epoch_order


def test_an_epoch_is_a_permutation_of_its_own():
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(50, 0, 1) == orders[1]


@given(
    num_samples=st.integers(1, 40),
    batch_size=st.integers(1, 10),
    start=st.integers(0, 30),
    steps=st.integers(0, 20),
)
def test_starting_anywhere_gives_the_same_batches(num_samples, batch_size, start, steps):
    batch_size = min(batch_size, num_samples)
    whole = list(StepSampler(num_samples, batch_size, 5, range(start + steps)))
    part = list(StepSampler(num_samples, batch_size, 5, range(start, start + steps)))
    assert part == whole[start:]
    assert all(len(batch) == batch_size for batch in whole)


def test_an_epoch_never_repeats_a_sample():
    batches = list(StepSampler(23, 5, 0, range(8)))
    for epoch in (0, 1):
        tickets = [t for batch in batches for t in batch if t[0] == epoch]
        assert len(tickets) == len(set(tickets)) == 20
