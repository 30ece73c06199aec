from itertools import pairwise

import torch

from pipeline_local.data.images.arrays import ArrayDataset
from pipeline_local.data.images.subset import balanced_subset, rank_in_class

LABELS = torch.tensor([2, 0, 0, 1, 0, 2, 0, 1])


def dataset():
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)
    return ArrayDataset(images, LABELS, ("a", "b", "c"))


def test_rank_in_class_counts_earlier_samples_of_the_class():
    assert rank_in_class(LABELS).tolist() == [0, 0, 1, 0, 2, 1, 3, 1]


def test_subset_takes_the_first_of_each_class_in_stored_order():
    part = balanced_subset(dataset(), 6)
    assert [int(part[i][0]) for i in range(len(part))] == [0, 1, 2, 3, 5, 7]
    assert part.labels.tolist() == [part[i][1] for i in range(6)] == [2, 0, 0, 1, 2, 1]
    assert part.classes == ("a", "b", "c")


def test_smaller_subsets_lie_within_larger_ones():
    chosen = [set(balanced_subset(dataset(), n).indices.tolist()) for n in range(1, 8)]
    for smaller, larger in pairwise(chosen):
        assert smaller < larger


def test_a_limit_beyond_the_data_changes_nothing():
    whole = dataset()
    assert balanced_subset(whole, 8) is whole
