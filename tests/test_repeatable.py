"""Two runs with two threads end with the same bytes."""

import pytest
import torch
from torch import nn

from pipeline_local.configfile import configfile
from pipeline_local.finished.exporting.export import export
from pipeline_local.models import causal_lm, registry
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train

VIT = {"patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 64, "mlp_dim": 64}
SMALLEST = [
    *("mlp", "resnet20", "vgg", "vit", "resnet18", "resnext50_32x4d", "wide_resnet50_2"),
    *("vgg11_bn", "vit_b_16", "swin_t", "swin_v2_t", "alexnet", "squeezenet1_1", "densenet121"),
    *("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"),
    *("shufflenet_v2_x0_5", "regnet_y_400mf", "maxvit_t", "googlenet", "inception_v3"),
]
"""A model of each family of images."""
LANGUAGE = "causal_lm"


def weights(folder, model, **data):
    tree = {
        "model": model,
        "modules": {"count": 2},
        "data": {"name": "synthetic", "batch_size": 8, "limit": 16, **data},
        "task": {"name": "next_token" if model["name"] == LANGUAGE else "classification"},
        "head": {"name": "readout" if model["name"] == LANGUAGE else "auglocal"},
        "reconcile": {"weight": 0.1, "every": 1},
        "train": {"steps": 2},
        "parallel": {"threads": 2},
        "run": {"dir": str(folder)},
    }
    train(configfile.parse(tree), RankInfo())
    return export(folder, folder / "weights.safetensors")


def differing(_, folder, model, data):
    """The weights that two runs do not have in common. A rank, as it uses several threads."""
    before = torch.are_deterministic_algorithms_enabled()
    first, second = (weights(folder / name, model, **data) for name in ("one", "two"))
    assert torch.are_deterministic_algorithms_enabled() == before
    return [name for name in first if not torch.equal(first[name], second[name])]


class Table(nn.Module):
    """A learned table, indexed more often than torch adds up in one thread."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.empty(3, 64))
        self.register_buffer("places", torch.empty(2000, dtype=torch.int64))

    def reset_parameters(self):
        nn.init.normal_(self.table)
        self.places.random_(3)

    def forward(self, x):
        weights = torch.linspace(0.1, 1, 2000, device=x.device)[:, None]  # no two sums alike
        rows = self.table[self.places] * weights
        return x + rows.reshape(-1, 20, 64).square().sum(1).mean(0)


def net(num_classes, image_shape):
    stem = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64))
    return [stem, Table(), nn.Sequential(nn.ReLU(), Table()), nn.Linear(64, num_classes)]


def test_a_table_that_threads_add_to(tmp_path, run_ranks):
    assert run_ranks(differing, 1, tmp_path, {"name": f"python:{__name__}:net"}, {}) == [[]]


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SMALLEST)
def test_models_of_all_families(tmp_path, run_ranks, name):
    model = {"name": name, **(VIT if name == "vit" else {})}
    data = {"image_size": {"alexnet": 224, "maxvit_t": 224, "inception_v3": 96}.get(name, 64)}
    assert run_ranks(differing, 1, tmp_path, model, data, timeout=300) == [[]]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=[] if name == "gpt2" else pytest.mark.long)
        for name in causal_lm.TESTED
    ],
)
def test_language_models(tmp_path, run_ranks, architecture):
    """More than 32,768 numbers of embeddings, the least that threads share."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    if architecture != "gpt2":
        sizes |= {"intermediate_size": 128}
    if architecture == "helium":  # its own default fits one width only
        sizes |= {"head_dim": 32}
    model = {"name": LANGUAGE, "architecture": architecture, "tie_word_embeddings": False, **sizes}
    data = {"name": "synthetic_tokens", "vocabulary": 300, "sequence_length": 96}
    assert run_ranks(differing, 1, tmp_path, model, data, timeout=300) == [[]]


def test_no_family_is_left_out():
    families = {name[:4] for name in (*SMALLEST, LANGUAGE)}
    assert {name[:4] for name in registry.MODELS.names()} == families
