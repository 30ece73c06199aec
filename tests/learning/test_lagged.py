"""What is under way at a checkpoint: each by a name of its own, and of one replica."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline_local.learning.contents import (
    BlockCopies,
    Feedback,
    UnembeddingCopies,
    copied_parameters,
)
from pipeline_local.learning.lag_plan import LaggedContent, LagPlan
from pipeline_local.learning.lagged import LaggedMessages
from pipeline_local.learning.step import Step


class HandedOn(LaggedContent):
    """Comes to module 1 with each microbatch, and goes on as it is."""

    every = 1

    def is_passed_on(self, sender):
        return sender == 1

    def specs(self, sender, of):
        return ()

    def message(self, sender, g, passed):
        return passed

    def apply(self, receiver, step, kept, arrived):
        return (next(arrived),)


def test_two_contents_that_are_handed_on_survive_a_checkpoint():
    """As copies for a tied embedding do beside the outputs of later heads."""

    def module_1():
        copies = UnembeddingCopies(every=1, num_modules=3, shared=False, lag=0)
        return LaggedMessages(LagPlan((copies, HandedOn()), steps=0), index=1)

    nobody = SimpleNamespace(body=torch.nn.Sequential(), head=torch.nn.Identity())
    messages, step = module_1(), Step(6, 0.1, microbatches=2)
    sent = {0: (torch.zeros(1),), 1: (torch.ones(2), torch.ones(3))}
    for microbatch, tensors in sent.items():
        messages.apply(nobody, step, microbatch, tensors)
    restored = module_1()
    restored.load(messages.tensors(), SimpleNamespace(index=0, size=1, has=lambda microbatch: True))
    for each in (messages, restored):
        for microbatch, tensors in sent.items():
            got = each.send(nobody, Step(7, 0.1, microbatches=2), microbatch, torch.zeros(1))
            assert [t.tolist() for t in got] == [t.tolist() for t in tensors]


@pytest.mark.parametrize("microbatches", [1, 3])
def test_what_is_sent_once_per_step_goes_with_the_last_microbatch_whatever_its_number(microbatches):
    """A run may go on with other numbers of microbatches and replicas."""
    copies = LaggedMessages(LagPlan((BlockCopies(1),)), index=1)
    copies.pending.push(3, microbatches - 1, torch.ones(2))
    feedback = LaggedMessages(LagPlan((Feedback(1), BlockCopies(1))), index=1)
    for microbatch in range(4):
        feedback.pending.push(3, microbatch, torch.ones(2))
    held = {}
    for index in range(2):
        replica = SimpleNamespace(index=index, size=2, has=lambda j, i=index: j % 2 == i)
        own, each = LaggedMessages(LagPlan((BlockCopies(1),)), 1), LaggedMessages(feedback._plan, 1)
        own.load(copies.tensors(), replica)
        each.load(feedback.tensors(), replica)
        held[index] = len(own.pending), [kept.microbatch for kept in each.pending]
    assert held == {0: (0, [0, 2]), 1: (1, [1, 3])}


def test_the_last_module_keeps_nothing_for_nobody():
    """Also where an earlier version has."""
    plan = LagPlan((Feedback(1),), num_modules=2)
    first, last = LaggedMessages(plan, 0), LaggedMessages(plan, 1)
    for each in (first, last):
        each.keep(Step(0, 0.1), 0, torch.ones(2), torch.ones(1))
    assert (len(first.awaiting), len(last.awaiting)) == (1, 0)
    assert first.expects(Step(plan.steps, 0.1), 0)
    assert not last.expects(Step(plan.steps, 0.1), 0)
    alone = SimpleNamespace(index=0, size=1, has=lambda microbatch: True)
    last.load(first.tensors(), alone)
    assert not last.tensors()


class Copying(nn.Module):
    """A head with a copy, beside a layer that learns."""

    follows = "block"

    def __init__(self):
        super().__init__()
        self.copy = nn.Linear(2, 2).requires_grad_(False)
        self.own = nn.Linear(2, 2)

    def begin(self, original):
        """Take over what is copied."""

    def follow(self, published):
        """Move towards it."""


def test_frozen_weights_are_no_copies():
    """Only copies are handed to the other replicas."""
    head, frozen = Copying(), nn.Linear(2, 2).requires_grad_(False)
    assert copied_parameters(nn.Sequential(frozen), head) == list(head.copy.parameters())
    assert copied_parameters(nn.Sequential(frozen), nn.Linear(2, 2)) == []
