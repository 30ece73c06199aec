"""Next-token prediction in a few lines, for tests of language models: data, task, head."""

import torch
from torch import nn
from torch.nn import functional

from pipeline_local.data.datasets import GivenData
from pipeline_local.data.given import given
from pipeline_local.learning.heads.head import Head
from pipeline_local.learning.tasks import Task
from pipeline_local.models.unembedding import Unembedding

VOCABULARY, LENGTH = 40, 16
DATA = "python:tests.token_task:tokens"
TASK = "python:tests.token_task:NextToken"
HEAD = "python:tests.token_task:head"


class Tokens:
    """Rows that count upwards from anywhere in steps of one to three: easy to learn."""

    def __call__(self, root, split):
        return getattr(self.run_data(), split).samples

    def run_data(self, data=None):
        ids = torch.arange(LENGTH + 1)[None] * (1 + torch.arange(64)[:, None] % 3)
        ids = (ids + 5 * torch.arange(64)[:, None]) % VOCABULARY
        splits = [given((part[:, :-1], part[:, 1:])) for part in (ids[:48], ids[48:])]
        return GivenData(*splits, num_classes=VOCABULARY, batch_size=8)


tokens = Tokens()


class NextToken(Task):
    """Cross-entropy of each next token: logits [B, T, V], labels [B, T]."""

    adds_up = True

    def __init__(self, num_classes, label_shape):
        super().__init__((*label_shape, num_classes), label_shape)

    @property
    def num_outputs(self):
        return self.output_shape[-1]

    def loss(self, outputs, labels):
        return functional.cross_entropy(outputs.float().flatten(0, 1), labels.flatten())

    def score(self, outputs, labels):
        return (outputs.argmax(-1) == labels).float().mean()


def head(site):
    width = site.shape[-1]
    norm, matrix = nn.LayerNorm(width), nn.Linear(width, site.output_shape[-1], bias=False)
    return Head(nn.Sequential(Unembedding(norm, matrix)))


def settings(run, /, **sections):
    """A mapping of sections that `configfile` takes, for a tiny model of two layers."""
    model = {
        "name": "causal_lm",
        "architecture": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32,
    }
    return {
        "model": model,
        "data": {"name": DATA, "batch_size": 8},
        "task": {"name": TASK},
        "head": {"name": HEAD},
        "modules": {"count": 2},
        "train": {"steps": 12, "seed": 0},
        "optimizer": {"name": "adamw", "lr": 0.01, "warmup": 0, "clip": 1.0},
        "run": {"dir": str(run)},
        **sections,
    }
