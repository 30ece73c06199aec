"""The next-token loss without all logits is that with all of them, and so are its gradients."""

import math
from itertools import accumulate

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from pipeline_local.errors import UserError
from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.learning.tasks import Classification, Logits, NextToken, next_token

B, T, D, V = 3, 7, 5, 11
TASK = NextToken(V, (T,))


class Readout(nn.Module):
    """A head that tells its hidden state from its logits."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.weight = nn.Parameter(torch.randn(V, D))

    def hidden(self, x):
        return self.norm(x)

    def forward(self, x):
        return self.norm(x) @ self.weight.T


def batch(dtype=torch.float64):
    torch.manual_seed(0)
    labels = torch.randint(V, (B, T))
    labels[0, 2:] = IGNORE_LABEL
    return torch.randn(B, T, D, dtype=dtype), labels


def reference(logits, labels):
    """Per token, over all that count."""
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.sum() / (labels != IGNORE_LABEL).sum()


@pytest.fixture(params=["torch's own", "chunks of one token", "chunks of three", "one chunk"])
def way(request, monkeypatch):
    """How the loss is computed."""
    own = request.param == "torch's own"
    if own and not next_token._FUSED:
        pytest.skip("torch has no linear cross-entropy in chunks")
    monkeypatch.setattr(next_token, "_FUSED", own)
    tokens = {"chunks of one token": 1, "chunks of three": 3}.get(request.param, 10**6)
    monkeypatch.setattr(next_token, "_MOST_LOGITS", tokens * V)
    return request.param


@pytest.mark.parametrize("read_only", [True, False])
def test_loss_and_gradients_are_those_of_all_logits(way, read_only):
    x, labels = batch()
    weight = torch.randn(V, D, dtype=torch.float64)
    results = []
    for outputs in (lambda h, w: h @ w.T, Logits):
        hidden, own = x.clone().requires_grad_(), weight.clone().requires_grad_(not read_only)
        loss = TASK.loss(outputs(hidden, own), labels)
        wanted = [hidden] if read_only else [hidden, own]
        results.append([loss, *torch.autograd.grad(3 * loss, wanted)])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(results[0][0], reference(x @ weight.T, labels))


def test_bfloat16_is_summed_in_float32(way):
    """Of the parts, as of the whole: 256 would be the largest sum of ones."""
    x, labels = torch.zeros(64, 64, D, dtype=torch.bfloat16), torch.zeros(64, 64, dtype=torch.int64)
    x.requires_grad_()
    weight = torch.zeros(V, D, requires_grad=True)
    loss = NextToken(V, (64,)).loss(Logits(x, weight), labels)
    assert loss.float().item() == pytest.approx(math.log(V), rel=1e-2)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert not gradient.any()


def wide_and_narrow(dtype, length):
    """The exact loss of many tokens, and the same in a narrow dtype with what it depends on."""
    torch.manual_seed(0)
    x = torch.randn(1, length, D).to(dtype).requires_grad_()
    weight = torch.randn(V, D).to(dtype).float().requires_grad_()
    labels = torch.randint(V, (1, length))
    expected = reference(x.float() @ weight.T, labels)
    return x, weight, labels, expected


@pytest.mark.parametrize("length", [64, 2**15])
def test_float16_holds_the_sum_of_many_tokens_and_the_first_scale(length):
    """Their losses add up to more than 65504, and 2^16 is more, too."""
    x, weight, labels, expected = wide_and_narrow(torch.float16, length)
    loss = NextToken(V, (length,)).loss(Logits(x, weight), labels)
    torch.testing.assert_close(loss.float(), expected, rtol=2e-3, atol=0.0)
    found = torch.autograd.grad(loss.float() * 2**16, [x, weight])
    for gradient, wanted in zip(found, torch.autograd.grad(expected, [x, weight]), strict=True):
        error = (gradient.float() / 2**16 - wanted).norm() / wanted.norm()
        assert error < 5e-3


@pytest.mark.parametrize("length", [64, 2**13])
def test_bfloat16_holds_the_sum_of_many_tokens(way, length):
    """It has 8 bits: of some thousand terms it would miss percents."""
    x, weight, labels, expected = wide_and_narrow(torch.bfloat16, length)
    loss = NextToken(V, (length,)).loss(Logits(x, weight), labels)
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0.0)


def test_a_perplexity_is_not_rounded_as_the_network_is():
    x, weight, labels, expected = wide_and_narrow(torch.bfloat16, 999)
    score = NextToken(V, (999,)).score(Logits(x, weight), labels)
    torch.testing.assert_close(score, expected.exp(), rtol=3e-3, atol=0.0)


def test_a_head_without_hidden_state_gives_all_logits():
    x, labels = batch(torch.float32)
    head = Readout()
    plain = nn.Sequential(head)
    assert isinstance(TASK.reader(head)(x), Logits)
    logits = TASK.reader(plain)(x)
    assert torch.equal(logits, head(x))
    twice = NextToken(V, (T,))
    twice.differentiates_twice = True
    assert torch.equal(twice.reader(head)(x), logits)
    torch.testing.assert_close(TASK.loss(logits, labels), TASK.loss(TASK.reader(head)(x), labels))


@pytest.mark.parametrize("tokens", [1, 4, 1000])
def test_heads_are_judged_without_all_logits(tokens, monkeypatch):
    monkeypatch.setattr(next_token, "_MOST_LOGITS", tokens * V)
    x, labels = batch(torch.float32)
    heads = [Readout(), Readout()]
    known = labels != IGNORE_LABEL
    probabilities, summed = [], 0.0
    for head in heads:
        judged = TASK.judge(TASK.reader(head)(x), labels)
        assert judged.shape == (B, T, 2)
        torch.testing.assert_close(judged, TASK.judge(head(x), labels))
        probability = head(x).softmax(-1).gather(2, labels.clamp_min(0)[..., None])[..., 0]
        part = TASK.part(judged)
        assert part.shape == (B, *TASK.part_shape)
        torch.testing.assert_close(part[known], probability[known])
        probabilities.append(probability)
        summed = summed + part
    score = TASK.evaluate(judged, summed, labels, 2, B)
    nats = [-p[known].log().sum() for p in (probabilities[1], sum(probabilities) / 2)]
    torch.testing.assert_close([score.loss, score.score, score.ensemble], [nats[0], *nats])
    assert score.count == known.sum()
    right = (heads[1](x).argmax(-1) == labels)[known].sum()
    assert score.others["accuracy"] == right


def test_padding_is_not_scored():
    x, labels = batch(torch.float32)
    judged = TASK.judge(TASK.reader(Readout())(x), labels)
    whole = [TASK.evaluate(judged[k:], TASK.part(judged[k:]), labels[k:], 1, 1) for k in range(B)]
    both = TASK.evaluate(judged, TASK.part(judged), labels, 1, 2)
    torch.testing.assert_close(both.loss, whole[0].loss + whole[1].loss)
    assert both.count == whole[0].count + whole[1].count
    assert TASK.evaluate(judged, TASK.part(judged), labels, 1, 0).count == 0


def test_measures_are_perplexities_and_bits_per_byte():
    means = {"loss": 2.0, "score": 2.0, "ensemble": 1.5, "accuracy": 0.25}
    found = NextToken(V, (T,), bytes_per_token=4.0).measures(means)
    assert found == {
        "perplexity": pytest.approx(math.exp(2)),
        "ensemble_perplexity": pytest.approx(math.exp(1.5)),
        "loss": 2.0,
        "accuracy": 0.25,
        "bits_per_byte": pytest.approx(2 / math.log(2) / 4),
    }
    assert "bits_per_byte" not in TASK.measures(means)
    assert TASK.measures(means | {"loss": 1e4})["perplexity"] == math.inf


def test_the_score_while_training_is_a_perplexity():
    x, labels = batch(torch.float32)
    outputs = TASK.reader(Readout())(x)
    score = TASK.score(outputs.detach(), labels)
    torch.testing.assert_close(score, TASK.loss(outputs, labels).exp().detach())
    assert not score.requires_grad


def most_allocated(profiled):
    """The most bytes that were held at once beyond those at the start. `LiveBytes` would not see
    inside torch's own."""
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_loss_signal_and_judgement_never_hold_a_third_of_all_logits(fused, read_only, monkeypatch):
    if fused and not next_token._FUSED:
        pytest.skip("torch has no linear cross-entropy in chunks")
    samples, length, width, vocabulary = 8, 128, 16, 1024
    whole = samples * length * vocabulary * 4
    monkeypatch.setattr(next_token, "_FUSED", fused)
    monkeypatch.setattr(next_token, "_MOST_LOGITS", 64 * vocabulary)
    task = NextToken(vocabulary, (length,))
    x = torch.randn(samples, length, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=not read_only)
    labels = torch.randint(vocabulary, (samples, length))
    wanted = [x] if read_only else [x, weight]
    peaks = {}
    for name, outputs in {"whole": lambda h, w: h @ w.T, "unformed": Logits}.items():
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            torch.autograd.grad(task.loss(outputs(x, weight), labels), wanted)
            with torch.no_grad():
                task.judge(outputs(x, weight), labels)
        peaks[name] = most_allocated(profiled)
    assert peaks["whole"] > whole, "or nothing is counted"
    assert peaks["unformed"] < whole / 3


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_smoothed_labels_are_those_of_cross_entropy(way, smoothing):
    """In the loss; the perplexity is that of the labels themselves."""
    x, labels = batch()
    weight = torch.randn(V, D, dtype=torch.float64)
    task = NextToken(V, (T,), label_smoothing=smoothing)
    logits = x @ weight.T
    for outputs in (logits, Logits(x, weight)):
        expected = functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing
        )
        torch.testing.assert_close(task.loss(outputs, labels), expected)
        torch.testing.assert_close(task.score(outputs, labels), reference(logits, labels).exp())


def test_a_batch_without_labels_teaches_nothing(way):
    x, labels = batch()
    x.requires_grad_()
    loss = TASK.loss(Logits(x, torch.randn(V, D, dtype=x.dtype)), labels.fill_(IGNORE_LABEL))
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss == 0
    assert not gradient.any()


def test_rates_are_in_tokens():
    assert TASK.rate_text(3.0) == f"{3 * T} tokens/s"
    assert Classification(5).rate_text(3.0) == "3 samples/s"


def test_what_is_no_token_is_refused():
    with pytest.raises(ValueError, match=r"labels are tokens \[T\]"):
        NextToken(V, ())
    with pytest.raises(UserError, match="ids of tokens"):
        TASK.accept(torch.zeros(B, T))
    with pytest.raises(UserError, match="from 0 to 10"):
        TASK.accept(torch.full((B, T), V))
    labels = batch()[1]
    assert torch.equal(TASK.accept(labels.int()), labels)


def test_the_vocabulary_is_the_last_axis():
    assert TASK.output_shape == (T, V)
    assert TASK.num_outputs == V
    labels = TASK.example_labels(4, torch.Generator())
    assert labels.shape == (4, T)
    assert 0 <= labels.min() <= labels.max() < V
