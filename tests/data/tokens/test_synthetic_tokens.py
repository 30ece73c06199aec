"""Synthetic tokens: the same on every machine, within the vocabulary, in the form of any tokens."""

import itertools

import torch

from pipeline_local.config import DataConfig
from pipeline_local.data.datasets import describe, open_data
from pipeline_local.data.skipped import Skipped

DATA = DataConfig(
    "synthetic_tokens", batch_size=4, limit=20, args={"sequence_length": 8, "vocabulary": 100}
)


def batches():
    data = open_data(DATA)
    info = data.describe()
    return list(itertools.islice(data.train_batches(info, 0, 0, 5, Skipped()), 5)), info


def test_they_are_those_of_any_machine():
    data = DataConfig("synthetic_tokens", batch_size=1, limit=1, args=DATA.args)
    ((x, y),) = open_data(data).test_batches(describe(data), Skipped())
    expected = [((place + 1) * 0x9E3779B97F4A7C15 % 2**64 >> 33) % 100 for place in range(9)]
    assert (x.tolist(), y.tolist()) == ([expected[:-1]], [expected[1:]])
    whole = torch.cat([x.flatten() for x, _ in batches()[0]])
    assert 0 <= whole.min() < 10
    assert 90 < whole.max() < 100
    assert len(whole.unique()) > 60


def test_labels_are_the_next_tokens():
    found, info = batches()
    assert (info.num_train, info.num_test, info.num_classes) == (20, 20, 100)
    assert info.sample_shape == info.label_shape == (8,)
    for x, y in found:
        assert torch.equal(x[:, 1:], y[:, :-1])


def test_the_default_vocabulary_needs_nothing():
    data = DataConfig("synthetic_tokens", args={"sequence_length": 16})
    assert describe(data).num_classes == 50257
