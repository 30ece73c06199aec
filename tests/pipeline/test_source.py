"""The data as the first module's upstream: messages in the order the schedule asks for."""

import pytest
import torch

from pipeline_local.blueprint.run_plan import Evaluate
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.source import Source
from pipeline_local.placement.draw import draw as draw_blueprint


def make(start=0, actions=None, **train):
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 16, "limit": 40},
        "train": {"steps": 4, "log_every": 2, "evaluate_every": 2, **train},
    }
    config = configfile.parse(tree)
    blueprint = draw_blueprint(config, describe(config.data))
    run_plan = blueprint.run_plan
    actions = run_plan.actions(start) if actions is None else actions
    steps = range(start, run_plan.num_steps)
    info, cpu = blueprint.info, torch.device("cpu")
    return run_plan, Source(config, info, actions, steps, cpu, torch.float32)


def drain(source):
    messages = []
    while True:
        try:
            messages.append(source.recv())
        except StopIteration:
            return messages


@pytest.mark.parametrize("microbatches", [1, 4])
def test_messages_follow_the_schedule(microbatches):
    """As many as any channel would carry, a signal being empty."""
    run_plan, source = make(microbatches=microbatches)
    expected = []
    for action in run_plan.actions():
        if isinstance(action, Step):
            one = [16 // microbatches, 0] if action.compare else [16 // microbatches]
            expected += one * microbatches
        elif isinstance(action, Evaluate):
            parts = len(run_plan.test_batches) * microbatches
            expected += [16 // microbatches] * parts
    assert [len(message[0]) if message else 0 for message in drain(source)] == expected


def test_resuming_goes_on_where_it_was():
    whole = drain(make()[1])
    rest = drain(make(start=2)[1])
    for a, b in zip(rest, whole[-len(rest) :], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_microbatches_are_parts_of_the_batch():
    (whole, _), *_ = drain(make()[1])
    parts = drain(make(microbatches=4)[1])[:4]
    assert torch.equal(torch.cat([x for x, _ in parts]), whole)
    assert abs(whole.mean().item()) < 0.3
    assert whole.std().item() == pytest.approx(1, abs=0.2)


def test_padding_counts_nowhere():
    """40 of 48 samples are left."""
    _, source = make(start=4, actions=[Evaluate(4)])
    labels = torch.cat([labels for _, labels in drain(source)])
    assert (labels != IGNORE_LABEL).sum() == 40


def test_evaluation_alone():
    _, source = make(start=4, actions=[Evaluate(4)])
    assert len(drain(source)) == 3
    source.close()
