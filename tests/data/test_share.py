import torch

from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe, open_data
from pipeline_local.data.share import WHOLE, Share
from pipeline_local.data.skipped import Skipped

DIGITS = {"name": "digits", "batch_size": 12, "augment": "standard"}


def test_shares_are_disjoint_and_complete():
    shares = [Share(6, (0, 3)), Share(6, (1, 4)), Share(6, (2, 5))]
    rows = [share.rows(12) for share in shares]
    assert rows[0] == [0, 1, 6, 7]
    assert sorted(row for own in rows for row in own) == list(range(12))
    assert WHOLE.rows(5) == Share(2, (0, 1)).rows(5) == list(range(5)), "of unequal parts, too"


def test_data_gives_each_share_its_samples():
    """Of training and test batches, also of the last one, which is filled up; with mixup, each
    image is mixed as in the whole batch."""
    for mixup in (0.0, 0.3):
        config = configfile.parse(
            {
                "model": {"name": "mlp"},
                "data": {**DIGITS, "mixup": mixup},
                "train": {"steps": 3, "microbatches": 3},
            }
        )
        data, info = open_data(config.data), describe(config.data)

        def batches(share, data=data, info=info):
            train = [*data.train_batches(info, 0, 1, 2, Skipped(), share)]
            return train, [*data.test_batches(info, Skipped(), share)]

        whole = batches(WHOLE)
        parts = [Share(3, (0, 2)), Share(3, (1,))]
        for share in parts:
            for mine, all_of_it in zip(batches(share), whole, strict=True):
                for own, batch in zip(mine, all_of_it, strict=True):
                    for tensor, full in zip(own, batch, strict=True):
                        assert torch.equal(tensor, full[share.rows(12)])
