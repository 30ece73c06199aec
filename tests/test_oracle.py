"""The placement oracle: K modules on 1, 2, 3 and K stages give bit-identical parameters.

Everything that a run leaves in its checkpoint (weights, statistics, optimizer state) is compared
byte by byte, after tens of steps, for each estimator, with dropout, batch norm, augmentation,
microbatches, mixup. It is never loosened.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from pipeline_local.configfile import configfile
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train
from pipeline_local.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
CIFAR10 = os.environ.get("PIPELINE_LOCAL_CIFAR10")
DIGITS = {"name": "digits", "batch_size": 32}
RESNET = {"model": {"name": "resnet20", "width": 4}, "data": DIGITS}
AUGMENTED = {"name": "synthetic", "image_size": 8, "limit": 200, "batch_size": 32}
AUGMENTED |= {"augment": "trivial", "mixup": 0.3}
VIT = {
    "model": {
        "name": "vit",
        "patch_size": 4,
        "num_layers": 4,
        "num_heads": 2,
        "hidden_dim": 16,
        "mlp_dim": 32,
        "dropout": 0.2,
        "attention_dropout": 0.1,
    },
    "data": {"name": "synthetic", "batch_size": 32, "image_size": 16, "limit": 200},
}
TOKENS = {"name": "tokens", "sequence_length": 16, "batch_size": 8, "tokenizer": "bytes"}
LLAMA = {
    "model": {
        "name": "causal_lm",
        "architecture": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "data": TOKENS,
    "task": {"name": "next_token"},
    "head": {"name": "readout", "depth": 1, "refresh": 3},
    "optimizer": {"name": "muon", "lr": 0.01, "momentum": 0.9},
}
GPT2 = {
    **LLAMA,
    "model": {
        "name": "causal_lm",
        "architecture": "gpt2",
        "n_embd": 16,
        "n_layer": 5,
        "n_head": 2,
        "n_positions": 16,
        "tie_word_embeddings": False,
    },
}
TIED = {**GPT2["model"], "tie_word_embeddings": True}
EXACT = {"weight": 0.2, "estimator": "exact", "every": 1}
FINITE = {"weight": 0.2, "estimator": "finite_difference", "every": 1}
UPSTREAM = {"distance": "relative", "every": 2}

CASES = {
    "plain": {**RESNET},
    "exact": {**RESNET, "reconcile": EXACT},
    "finite difference": {**RESNET, "reconcile": FINITE},
    "shift": {**RESNET, "reconcile": {**FINITE, "estimator": "shift"}},
    "shift, both directions, microbatches, dropout": {
        **VIT,
        "train": {"steps": 12, "microbatches": 2},
        "reconcile": {**FINITE, **UPSTREAM, "direction": "both", "estimator": "shift"},
    },
    "every third step, on half of the batch": {
        **RESNET,
        "reconcile": {**FINITE, "every": 3, "fraction": 0.5},
    },
    "augmentation, mixup": {**RESNET, "data": AUGMENTED, "reconcile": FINITE},
    "augmentation, mixup, workers": {
        **RESNET,
        "data": {**AUGMENTED, "workers": 1},
        "reconcile": FINITE,
    },
    "microbatches": {
        **RESNET,
        "train": {"steps": 10, "microbatches": 4},
        "reconcile": FINITE,
    },
    "dropout, exact, AdamW": {
        **VIT,
        "reconcile": EXACT,
        "optimizer": {"name": "adamw", "lr": 0.001},
    },
    "dropout, finite difference, clipping": {
        **VIT,
        "reconcile": FINITE,
        "optimizer": {"clip": 1.0, "warmup": 0.2},
    },
    "feedback, exact": {**RESNET, "reconcile": {**EXACT, **UPSTREAM, "direction": "upstream"}},
    "both directions, microbatches, dropout": {
        **VIT,
        "train": {"steps": 12, "microbatches": 2},
        "reconcile": {**FINITE, **UPSTREAM, "direction": "both"},
    },
    "bfloat16": {**VIT, "reconcile": FINITE, "precision": "bfloat16"},
    "narrow wire, both directions, microbatches, mixup": {
        **RESNET,
        "data": {**DIGITS, "mixup": 0.3},
        "train": {"steps": 12, "microbatches": 2},
        "reconcile": {**FINITE, **UPSTREAM, "direction": "both"},
        "parallel": {"wire_dtype": "float16"},
    },
    "copies of parameters": {**RESNET, "head": {"name": "ema", "refresh": 3, "decay": 0.9}},
    "copies, both directions, microbatches, dropout, narrow wire": {
        **VIT,
        "head": {"name": "ema", "refresh": 2, "decay": 0.5},
        "train": {"steps": 12, "microbatches": 2},
        "reconcile": {**FINITE, **UPSTREAM, "direction": "both"},
        "parallel": {"wire_dtype": "bfloat16"},
    },
    "channels last, both directions, microbatches": {
        **RESNET,
        "train": {"steps": 12, "microbatches": 2},
        "reconcile": {**FINITE, **UPSTREAM, "direction": "both"},
        "channels_last": True,
    },
    "reconstruction beside copies, both directions, microbatches, dropout": {
        **VIT,
        "head": {"name": "ema", "refresh": 2},
        "information": {"name": "reconstruction", "weight": [1, 0.2], "task_weight": [0.5, 1]},
        "train": {"steps": 12, "microbatches": 2},
        "reconcile": {**FINITE, **UPSTREAM, "direction": "both", "estimator": "shift"},
        "parallel": {"wire_dtype": "bfloat16"},
    },
    "readouts over several hops, both directions, microbatches": {
        **LLAMA,
        "train": {"steps": 20, "microbatches": 2},
        "reconcile": {**FINITE, **UPSTREAM, "direction": "both", "estimator": "shift"},
        "parallel": {"wire_dtype": "bfloat16"},
    },
    "readouts, dropout, finite difference": {**GPT2, "reconcile": FINITE},
    "tied embeddings beside readouts": {**GPT2, "model": TIED, "train": {"steps": 30}},
    "tied embeddings beside heads of their own, microbatches, narrow wire": {
        **GPT2,
        "model": TIED,
        "head": {"name": "auglocal", "depth": 1},
        "train": {"steps": 30, "microbatches": 2},
        "parallel": {"wire_dtype": "bfloat16"},
    },
    "distillation": {**RESNET, "distill": {"weight": 0.5, "every": 3}},
    "distillation by the last head beside copies, both directions, microbatches, dropout": {
        **VIT,
        "head": {"name": "ema", "refresh": 2},
        "train": {"steps": 24, "microbatches": 2},
        "reconcile": {**FINITE, **UPSTREAM, "direction": "both"},
        "distill": {"weight": 0.5, "teacher": "last", "every": 1},
        "parallel": {"wire_dtype": "bfloat16"},
    },
    "heads on a part of the batch, microbatches, dropout, distillation": {
        **VIT,
        "head": {"name": "auglocal", "fraction": 0.5},
        "information": {"name": "reconstruction"},
        "train": {"steps": 16, "microbatches": 2},
        "distill": {"weight": 0.5, "every": 1},
    },
    "contrast, on half of the batch": {
        **RESNET,
        "information": {"name": "contrast", "weight": 0.3},
        "train": {"steps": 10},
        "reconcile": {**FINITE, "every": 3, "fraction": 0.5},
    },
}


def parse(case, folder):
    tree = {"modules": {"count": 4}, "train": {"seed": 3}, **case}
    tree["train"] = {"steps": 20, "log_every": 7, "evaluate_every": 16, **tree["train"]}
    tree["run"] = {"dir": str(folder)}
    tree["parallel"] = {"threads": 1, **case.get("parallel", {})}
    tree["head"] = case.get("head", {"name": "auglocal"})
    if tree["data"]["name"] == "tokens":
        tree["data"] = {**tree["data"], "root": str(texts(folder.parent / "texts"))}
    return configfile.parse(tree)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Of the tokens of texts; not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def texts(folder):
    """A folder of texts; the same ones wherever it is."""
    for split, count in (("train", 300), ("test", 60)):
        path = folder / split / "squares.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(" ".join(str(n * n) for n in range(count)))
    return folder


def run_stage(rank_info, config):
    train(config, rank_info)


def checkpoint(folder):
    """The bytes of each module's last checkpoint."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("checkpoints/*/*.safetensors"))}


def scores(folder):
    summary = json.loads((folder / "summary.json").read_text())
    names = ("accuracy", "ensemble_accuracy", "perplexity", "ensemble_perplexity", "loss")
    return {name: summary[name] for name in names if name in summary}


PARTS_OF_OTHERS = {
    "augmentation, mixup, workers",
    "microbatches",
    "exact",
    "shift",
    "finite difference",
    "copies of parameters",
    "readouts, dropout, finite difference",
    "tied embeddings beside heads of their own, microbatches, narrow wire",
    "distillation",
    "every third step, on half of the batch",
    "bfloat16",
    "both directions, microbatches, dropout",
    "shift, both directions, microbatches, dropout",
    "copies, both directions, microbatches, dropout, narrow wire",
}
"""Cases whose parts are in other cases, too, and the slowest arithmetic of a CPU."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in PARTS_OF_OTHERS else [])
        for name in CASES
    ],
)
def test_placement_changes_nothing(name, tmp_path, run_ranks):
    alone = tmp_path / "1"
    train(parse(CASES[name], alone), RankInfo())
    expected = checkpoint(alone)
    assert len(expected) == 4
    for stages in (2, 3, 4):
        folder = tmp_path / str(stages)
        run_ranks(run_stage, stages, parse(CASES[name], folder))
        assert checkpoint(folder) == expected, f"{stages} stages"
        assert scores(folder) == scores(alone), f"{stages} stages"


@pytest.mark.skipif(not CIFAR10, reason="PIPELINE_LOCAL_CIFAR10 does not name a folder")
def test_real_cifar10(tmp_path, run_ranks):
    """A slice of it, as an image folder, with augmentation; docs/results has all of it."""
    case = configfile.load(ROOT / "configs" / "cifar10.yaml").train
    slice_of_it = {
        "model": {"name": "resnet20"},
        "data": {"name": "imagefolder", "root": CIFAR10, "image_size": 32, "limit": 256}
        | {"batch_size": 64, "augment": "standard"},
        "reconcile": {**FINITE, "every": 4},
        "train": {"steps": 6, "seed": case.seed},
    }
    for stages in (1, 2, 4):
        run_ranks(run_stage, stages, parse(slice_of_it, tmp_path / str(stages)))
    first = checkpoint(tmp_path / "1")
    assert len(first) == 4
    assert checkpoint(tmp_path / "2") == first
    assert checkpoint(tmp_path / "4") == first


def test_the_oracle_can_fail(tmp_path):
    """Another seed, or another strength, gives other bytes."""
    train(parse(CASES["finite difference"], tmp_path / "a"), RankInfo())
    other = {**RESNET, "reconcile": {**FINITE, "weight": 0.21}}
    train(parse(other, tmp_path / "b"), RankInfo())
    first, second = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    assert first["module-001.safetensors"] == second["module-001.safetensors"]
    assert all(
        first[f"module-00{k}.safetensors"] != second[f"module-00{k}.safetensors"] for k in (2, 3, 4)
    )


def test_zero_weight_equals_plain_local_learning(tmp_path):
    """Whatever the estimator, and however often neighbours are compared."""
    runs = [
        {**RESNET},
        {**RESNET, "reconcile": {"weight": 0.0, "estimator": "exact"}},
        {**RESNET, "train": {"seed": 3, "log_every": 1}},
    ]
    results = []
    for number, case in enumerate(runs):
        train(parse(case, tmp_path / str(number)), RankInfo())
        results.append(checkpoint(tmp_path / str(number)))
    assert results[0] == results[1] == results[2]


class StoppedError(Exception):
    """The run was cut off."""


def run_until(rank_info, config, step):
    """Train, and fall over before this step; the watchdog ends whoever has not done so itself."""

    def stumble(self, action):
        if action.number == step:
            raise StoppedError
        train_step(self, action)

    train_step, Trainer.train = Trainer.train, stumble
    with pytest.raises(StoppedError):
        train(config, rank_info)


def test_activation_checkpointing_changes_nothing(tmp_path):
    """Nor does it with batch norm and dropout, which would notice a second run."""
    names = ("both directions, microbatches, dropout", "dropout, exact, AdamW")
    for number, name in enumerate(names):
        case = {**CASES[name], "train": {**CASES[name].get("train", {}), "steps": 5}}
        plain, again = tmp_path / f"{number}", tmp_path / f"{number} recomputed"
        train(parse(case, plain), RankInfo())
        config = parse(case, again)
        train(replace(config, modules=replace(config.modules, recompute=True)), RankInfo())
        assert checkpoint(plain) == checkpoint(again)


@pytest.mark.parametrize(
    ("direction", "channels_last", "head", "distill"),
    [
        ("downstream", False, "auglocal", 0.0),
        pytest.param("both", False, "auglocal", 0.0, marks=pytest.mark.long),
        ("both", True, "auglocal", 0.0),
        ("downstream", True, "ema", 0.0),
        ("downstream", True, "linear", 0.5),
    ],
)
def test_resuming_changes_nothing(direction, channels_last, head, distill, tmp_path, run_ranks):
    """Cut off in the middle of an epoch, resumed from the last checkpoint on more stages; with
    feedback, copies of parameters or distillation, some of them are on their way then."""
    case = {
        **RESNET,
        "train": {"steps": 20},
        "channels_last": channels_last,
        "head": {"name": head, **({"refresh": 3} if head == "ema" else {})},
        "reconcile": {**FINITE, **UPSTREAM, "direction": direction},
        "distill": {"weight": distill, "every": 3},
        "checkpoint": {"every_steps": 5, "keep": 9},
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(parse(case, whole), RankInfo())
    with pytest.raises(AssertionError, match="the process died"):
        run_ranks(run_until, 2, parse(case, cut), 13)
    assert not list(cut.glob("checkpoints/step-*20/*"))
    with safe_open(sorted(cut.glob("checkpoints/*/module-002*"))[-1], "pt") as file:
        queues = {name.split(".")[1] for name in file.keys() if name.startswith("lagged.")}  # noqa: SIM118
    assert bool(queues) == (direction == "both" or head == "ema" or distill > 0)
    assert ("passing" in queues) == (distill > 0)
    config = parse(case, cut)
    run_ranks(run_stage, 3, replace(config, run=replace(config.run, resume=True)))
    assert checkpoint(cut) == checkpoint(whole)
    assert scores(cut) == scores(whole)
