import pytest
import torch

from pipeline_local.data.sampler import epoch_order, steps_per_epoch, train_indices


def test_epoch_order_is_a_permutation_that_changes_with_seed_and_epoch():
    orders = [epoch_order(50, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    for order in orders:
        assert order.sort().values.tolist() == list(range(50))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0], epoch_order(50, 0, 0))


def test_steps_of_an_epoch_visit_no_sample_twice_and_drop_the_rest():
    pairs = [pair for step in range(3) for pair in train_indices(11, 3, seed=5, step=step)]
    assert len(pairs) == len(set(pairs)) == 9
    assert {epoch for epoch, _ in pairs} == {0}
    assert train_indices(11, 3, seed=5, step=3)[0][0] == 1


def test_the_dropped_samples_differ_between_epochs():
    def visited(epoch):
        return {i for step in range(3) for _, i in train_indices(11, 3, 5, 3 * epoch + step)}

    assert len({frozenset(visited(epoch)) for epoch in range(5)}) > 1


def test_a_step_does_not_depend_on_the_steps_before():
    forwards = [train_indices(20, 4, 0, step) for step in range(20)]
    backwards = [train_indices(20, 4, 0, step) for step in reversed(range(20))]
    assert forwards == backwards[::-1]


def test_a_batch_must_fit():
    assert steps_per_epoch(10, 10) == 1
    with pytest.raises(ValueError, match="batch of 11 cannot be filled from 10"):
        steps_per_epoch(10, 11)
