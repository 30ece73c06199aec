"""Variants are interleaved."""

import pytest
import torch

from pipeline_local.bench.timing import Times, interleaved


def test_variants_are_interleaved_after_a_warm_up():
    seen = []
    work = {name: lambda name=name: seen.append(name) for name in "abc"}
    times = interleaved(work, runs=2, device=torch.device("cpu"))
    assert "".join(seen) == "abcabcabc"
    assert all(len(t.seconds) == 2 for t in times.values())


def test_median_and_spread():
    times = Times((3.0, 1.0, 2.0))
    assert times.median == 2.0
    assert times.spread == pytest.approx(1.0)
