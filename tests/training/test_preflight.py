"""What is checked before any rank exists costs nothing and leaves nothing."""

import pytest
import torch

from pipeline_local.errors import UserError
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.preflight import check
from tests.training.test_trainer import parse


def test_check_spends_nothing(tmp_path):
    before = torch.get_rng_state()
    check(parse(tmp_path / "run"), RankInfo(0, 4, 0, 4))
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(UserError, match="5 stages for 4 modules"):
        check(parse(tmp_path / "run"), RankInfo(0, 5, 0, 5))
