"""`fit` as programs call it: what they pass, where it runs, what stays, and every mistake."""

import json
import os
import runpy
import subprocess
import sys
import threading
from functools import partial
from math import isfinite
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pipeline_local import BestCheckpoint, Callback, Predictor, Task, cli, fit, load
from pipeline_local.configfile import configfile
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.given.metric_names import TAKEN
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.training.train import train

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def points(count, shape=(8,), seed=0):
    """Inputs [count, *shape], and whether their sum is positive."""
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return x, (x.flatten(1).sum(1) > 0).long()


def network(outputs=2, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs)]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """Two residual blocks that only a graph shows."""

    def __init__(self, norm=nn.Identity):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norm = norm()
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        x = functional.relu(self.norm(self.stem(x)))
        x = x + functional.relu(self.first(x))
        x = x + functional.relu(self.second(x))
        return self.last(x.mean((2, 3)))


@pytest.fixture
def fitted(tmp_path):
    """`fit` in this process, short, into a folder of the test's own."""

    def call(model, train=None, test=None, /, **settings):
        length = {"steps": 4, "log_every": 2, **settings.pop("train", {})}
        if "epochs" in settings:
            del length["steps"]
        return fit(
            model,
            points(64) if train is None else train,
            points(20, seed=1) if test is None else test,
            **{
                "modules": 2,
                "batch_size": 16,
                "run_dir": tmp_path / "run",
                "head": {"name": "linear"},
                "parallel": {"threads": 1},
                "train": length,
                **settings,
            },
        )

    return call


def test_the_last_line_names_what_takes_the_run(fitted, tmp_path, capsys):
    """No command that needs the model, which is the program's."""
    fitted(network())
    fitted(network(), run_dir=tmp_path / "other")
    last = " ".join(capsys.readouterr().out.rpartition("run folder: ")[2].split())
    assert "load(run, model)" in last
    named = {"report", "compare", "trace", "evaluate", "diagnose", "export"}
    assert named & {*last.replace(",", "").split()} == {"report", "compare", "trace"}
    run = str(tmp_path / "run")
    assert [cli.main(["trace", run]), cli.main(["compare", run, str(tmp_path / "other")])] == [0, 0]
    assert cli.main(["evaluate", run]) == 2


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


# -- models ------------------------------------------------------------------------------------


def test_it_learns_and_the_weights_come_back(fitted, tmp_path):
    model = network()
    before, mode = state(model), model.training
    summary = fitted(model, epochs=8, lr=0.05)
    assert summary["accuracy"][-1] > 0.8
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not same(before, state(model))
    assert model.training == mode
    x, y = points(20, seed=1)
    right = (model(x).argmax(1) == y).float().mean()
    assert right == pytest.approx(summary["accuracy"][-1])
    loaded = load(tmp_path / "run", network(seed=1))
    assert same(state(model), state(loaded))
    assert not loaded.training
    with pytest.raises(UserError, match="has 2 modules, and this one only 1 block to make them of"):
        load(tmp_path / "run", nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)))


MODELS = {
    "residual": (Residual, (1, 6, 6)),
    "batch norm": (partial(Residual, lambda: nn.BatchNorm2d(4)), (1, 6, 6)),
    "blocks": (lambda: [nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 2)], (8,)),
    "named blocks": (
        lambda: [("body", nn.Linear(8, 6)), ("more", nn.Linear(6, 6)), ("out", nn.Linear(6, 2))],
        (8,),
    ),
    "series": (
        lambda: nn.Sequential(
            *(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)),
        ),
        (2, 10),
    ),
    "lazy": (
        lambda: [nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.LazyLinear(6), nn.LazyLinear(2)],
        (8,),
    ),
    "float64": (lambda: network().double(), (8,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_as_users_have_them(fitted, tmp_path, name):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    summary = fitted(model, points(64, shape), points(20, shape, 1))
    assert len(summary["accuracy"]) == 2
    torch.manual_seed(1)
    again = load(tmp_path / "run", make())
    parts = model if isinstance(model, list) else [model]
    parts = [part[1] if isinstance(part, tuple) else part for part in parts]
    values = [value for part in parts for value in part.state_dict().values()]
    assert all(map(torch.equal, values, again.state_dict().values()))


def test_tokens(fitted):
    """Whole numbers in, through an embedding."""
    tokens = torch.randint(11, (64, 5), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    last = nn.Sequential(nn.Flatten(), nn.Linear(40, 3))
    data = tokens, tokens[:, 0] % 3
    summary = fitted(nn.Sequential(nn.Embedding(11, 8), layer, last), data, data)
    assert len(summary["loss"]) == 2


def test_numpy_arrays_of_float64(fitted):
    x, y = points(64)
    summary = fitted(network(), (x.double().numpy(), y.int().numpy()), points(20, seed=1))
    assert summary["steps"] == 4


def test_training_starts_where_the_weights_are(fitted):
    """With a tiny rate they stay: pretrained weights are not drawn again."""
    model = network(seed=5)
    before = state(model)
    fitted(model, lr=1e-12)
    assert all(torch.allclose(before[name], value) for name, value in state(model).items())


def test_frozen_layers_stay_frozen(fitted):
    model = Residual(lambda: nn.BatchNorm2d(4).eval())
    for part in (model.stem, model.norm):
        part.requires_grad_(False)
    model.norm.eval()
    before = state(model)
    shape = (1, 6, 6)
    fitted(model, points(64, shape), points(20, shape, 1))
    after = state(model)
    frozen = [name for name in before if name.startswith(("stem", "norm"))]
    assert len(frozen) == 7
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["first.weight"], after["first.weight"])
    assert not model.stem.weight.requires_grad


# -- data --------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A block with tensors of its own, which no layer draws."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.rand(8))
        self.register_buffer("positions", torch.randn(8))
        self.register_buffer("mask", torch.arange(8) % 3 > 0)

    def forward(self, x):
        return x + self.scale * self.mask * self.linear(x + self.positions)


class Kept(Callback):
    """Holds the modules of a run."""

    def on_start(self, run, step):
        self.modules = run.modules


def test_heads_copy_blocks_with_tensors_of_their_own(fitted):
    """What nothing draws afresh is the block's own, and trains on as a part of the head."""
    model, kept = nn.Sequential(Scaled(), Scaled(), nn.Linear(8, 2)), Kept()
    second = {name: value.clone() for name, value in model[1].state_dict().items()}
    fitted(model, head={"name": "auglocal", "depth": 1}, callbacks=[kept])
    copied = kept.modules[0].head.layers.copy0
    for name in ("positions", "mask"):
        assert torch.equal(copied.get_buffer(name), second[name])
    assert torch.allclose(copied.scale, second["scale"], atol=0.2)
    assert not torch.allclose(copied.linear.weight, second["linear.weight"], atol=0.2)
    assert not torch.equal(copied.scale, model[1].scale)


class Noisy(Dataset):
    """Points that are moved at random, as augmentation does."""

    def __init__(self, count, seed):
        self.x, self.y = points(count, seed=seed)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index] + 0.1 * torch.randn(8), int(self.y[index])


def test_a_data_set_with_random_transforms_gives_the_same_run(fitted, tmp_path):
    """Whatever the caller's generator says, with and without loader processes."""
    states = []
    for run, workers in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(states))
        data = Noisy(64, 0), Noisy(20, 1)
        model = network()
        fitted(model, *data, run_dir=tmp_path / run, data={"workers": workers})
        states.append(state(model))
    assert same(states[0], states[1])
    assert same(states[0], states[2])


def test_a_data_loader_says_batch_size_and_workers(fitted, tmp_path):
    x, y = points(64)
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    test = DataLoader(TensorDataset(*points(20, seed=1)), batch_size=7)
    model = network()
    fitted(model, loader, test, batch_size=None, epochs=2)
    config = configfile.load(tmp_path / "run" / "config.yaml")
    assert (config.data.batch_size, config.data.workers) == (32, 0)
    other = network()
    fitted(other, (x, y), batch_size=32, epochs=2, run_dir=tmp_path / "other")
    assert same(state(model), state(other))


def test_a_hugging_face_data_set(fitted, tmp_path):
    import datasets

    rows = [
        datasets.Dataset.from_dict({"features": x.tolist(), "label": y.tolist()})
        for x, y in (points(64), points(20, seed=1))
    ]
    one, two = network(), network()
    fitted(one, *rows)
    fitted(two, run_dir=tmp_path / "tensors")
    assert same(state(one), state(two))


def test_data_frames(fitted, tmp_path):
    """The same as a pair of tensors."""
    pandas = pytest.importorskip("pandas")
    frames = [
        (pandas.DataFrame(x.numpy()), pandas.Series(y.numpy()))
        for x, y in (points(64), points(20, seed=1))
    ]
    assert fitted(network(), *frames)["loss"] == fitted(network(), run_dir=tmp_path / "2")["loss"]


def test_few_samples_are_one_batch(fitted, tmp_path):
    fitted(network(), points(24), batch_size=None)
    assert configfile.load(tmp_path / "run" / "config.yaml").data.batch_size == 24


def test_the_weights_are_those_of_the_last_step(fitted, tmp_path, monkeypatch):
    """Over NFS a listing of the checkpoints may be older than they are, and not on every host."""
    listed, model = Checkpoints.steps, network()
    monkeypatch.setattr(Checkpoints, "steps", lambda own: [s for s in listed(own) if s < 4])
    fitted(model, checkpoint={"every_steps": 2, "keep": 3})
    monkeypatch.undo()
    assert len([*(tmp_path / "run" / "checkpoints").glob("step*")]) == 2
    assert same(state(model), state(load(tmp_path / "run", network())))


class OnDevice(Dataset):
    """Moves each sample to a device when it is read."""

    def __init__(self, x, y, device):
        self.x, self.y, self.device = x, y, device

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index].to(self.device), self.y[index].to(self.device)


def in_order(data, device):
    """A loader whose own function puts the batches on a device."""

    def collate(items):
        x, y = zip(*items, strict=True)
        return torch.stack(x).to(device), torch.stack(y).to(device)

    return DataLoader(TensorDataset(*data), batch_size=16, shuffle=True, collate_fn=collate)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "put",
    [
        lambda data, device: tuple(t.to(device) for t in data),
        lambda data, device: TensorDataset(*(t.to(device) for t in data)),
        lambda data, device: OnDevice(*data, device),
        in_order,
    ],
    ids=["tensors", "data set of tensors", "samples", "batches"],
)
def test_data_on_a_gpu_is_data(fitted, tmp_path, put):
    """As in a notebook that has moved everything there; the model with it."""
    device = torch.device(torch.accelerator.current_accelerator().type, 0)
    train, test = points(64), points(20, seed=1)
    usual = fitted(network(), train, test)
    model = network().to(device)
    moved = fitted(model, put(train, device), put(test, device), run_dir=tmp_path / "moved")
    assert moved["loss"] == usual["loss"]
    assert next(load(tmp_path / "moved", model).parameters()).device == device
    x = test[0].to(device)
    predictors = [Predictor(tmp_path / "moved", d, model=model) for d in (device, CPU)]
    assert torch.equal(*(predict(x).cpu() for predict in predictors))
    assert torch.equal(*(predict.classify(x, 0.6).exits for predict in predictors))


# -- tasks, losses, metrics --------------------------------------------------------------------


@pytest.mark.parametrize("width", [None, 1, 3])
def test_regression(fitted, width):
    """Labels [B] and [B, D], float64 as NumPy has them."""
    x, _ = points(64)
    y = x.sum(1).double() if width is None else x[:, :width].double()
    summary = fitted(network(width or 1), (x, y), (x, y), train={"steps": 40}, lr=0.02)
    first, last = summary["mean_absolute_error"]
    assert min(first, last) < 0.6 * y.abs().mean()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_multi_label(fitted, dtype):
    x, _ = points(64)
    y = (x[:, :3] > 0).to(dtype)
    summary = fitted(network(3), (x, y), (x, y), task="multi_label", train={"steps": 40}, lr=0.5)
    assert summary["accuracy"][-1] > 0.8


def test_dense(fitted):
    x = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    y[:, 0] = 255
    torch.manual_seed(0)
    blocks = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*blocks, nn.Conv2d(8, 2, 1))
    task = {"name": "dense", "ignore": 255}
    summary = fitted(model, (x, y), (x, y), task=task, train={"steps": 40})
    assert summary["accuracy"][-1] > 0.8
    with pytest.raises(UserError, match="from 0 to 1, as the model has 2 outputs: got 255"):
        fitted(model, (x, y), (x, y), run_dir="unused")


def test_what_a_run_shows_of_data_without_images(fitted, capsys):
    x, _ = points(64)
    data = x, x.sum(1)
    fitted(network(1), data, data)
    assert "inputs 8, 1 output\n" in capsys.readouterr().out


@pytest.mark.parametrize(("own", "percent"), [({"metric": functional.cross_entropy}, 0), ({}, 4)])
def test_only_fractions_are_shown_in_percent(fitted, capsys, own, percent):
    """A metric of a program's own may be any number; accuracy, alone and together, of two heads."""
    fitted(network(), **own)
    table = capsys.readouterr().out.partition("Test set")[2]
    assert table.count(" %") == percent


def test_a_loss_and_a_metric_of_ones_own(fitted):
    calls = []

    def smooth(outputs, labels):
        calls.append(outputs.requires_grad)
        return functional.cross_entropy(outputs, labels, label_smoothing=0.2)

    def errors(outputs, labels):
        return int((outputs.argmax(1) != labels).sum()) / len(labels)

    summary = fitted(network(), loss=smooth, metric=errors)
    assert set(summary) > {"errors", "ensemble_errors", "loss"}
    assert summary["errors"][-1] * 20 == round(summary["errors"][-1] * 20)  # of 20 test points
    assert any(calls)


def test_ones_own_loss_is_what_is_learned(fitted, tmp_path):
    """The task's own loss, handed in, gives the same weights; another one gives others."""
    losses = {
        "none": None,
        "same": functional.cross_entropy,
        "module": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])),
    }
    states = {}
    for name, loss in losses.items():
        model = network()
        fitted(model, loss=loss, run_dir=tmp_path / name)
        states[name] = state(model)
    assert same(states["none"], states["same"])
    assert not same(states["none"], states["module"])


def test_a_loss_may_take_outputs_of_any_shape(fitted, tmp_path):
    """A mean and a variance for each label; and an image for an image."""
    x, _ = points(64)

    def likelihood(outputs, labels):
        mean, variance = outputs[:, 0], functional.softplus(outputs[:, 1]) + 1e-3
        return functional.gaussian_nll_loss(mean, labels, variance)

    summary = fitted(network(2), (x, x.sum(1)), (x, x.sum(1)), loss=likelihood)
    assert summary["likelihood"] == pytest.approx(summary["loss"])
    load(tmp_path / "run", network(2))
    pictures = torch.rand(32, 1, 6, 6)
    blocks = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)]
    model = nn.Sequential(*blocks, nn.Conv2d(4, 1, 1))
    data = pictures, pictures
    summary = fitted(model, data, data, loss=nn.MSELoss(), run_dir=tmp_path / "pictures")
    assert summary["MSELoss"][-1] < 0.5


class Margin(Task):
    """Outputs [B, 2], labels [B] of 0 and 1."""

    metric = "margin"

    def loss(self, outputs, labels):
        return functional.multi_margin_loss(outputs, labels)

    def score(self, outputs, labels):
        return outputs.gather(1, labels[:, None]).mean()


def test_a_task_of_ones_own(fitted, tmp_path):
    summary = fitted(network(), task=Margin((2,)))
    assert "margin" in summary
    assert load(tmp_path / "run", network()) is not None


@pytest.mark.parametrize("own", [{"task": Margin((2,))}, {"loss": functional.cross_entropy}])
def test_a_loss_of_ones_own_smooths_its_labels_itself(fitted, own):
    with pytest.raises(UserError, match=r"^train\.label_smoothing: 0\.1 changes nothing"):
        fitted(network(), train={"label_smoothing": 0.1}, **own)


def seconds(outputs, labels):
    return 0.25


def input_norm(outputs, labels):
    return 0.25


@pytest.mark.parametrize("metric", [seconds, input_norm])
def test_a_metric_has_a_name_of_its_own(fitted, tmp_path, metric):
    """Beside all that summaries and metrics hold anyway."""
    summary = fitted(
        network(),
        metric=metric,
        train={"log_every": 1, "on_nan": "skip"},
        reconcile={"weight": 0.1, "every": 1, "direction": "both"},
        information={"name": "reconstruction"},
        optimizer={"clip": 1.0},
    )
    assert summary["metric"] == [0.25, 0.25]
    assert summary["seconds"] != [0.25, 0.25]
    lines = (tmp_path / "run" / "metrics" / "stage-0.jsonl").read_text().splitlines()
    facts = [json.loads(line) for line in lines]
    rows = [row for line in facts for row in line["modules"].values()]
    names = {name for each in (summary, *facts, *rows) for name in each}
    assert names - TAKEN == {"metric", "ensemble_metric"}


def test_a_loss_with_weights_of_classes_is_tried_on_fakes(fitted, monkeypatch):
    """Torch prints a traceback of each operation that it cannot run on fake tensors."""
    printed = []
    monkeypatch.setattr(fake_tensor.log, "exception", lambda *args, **_: printed.append(args))
    monkeypatch.setattr(fake_tensor.log, "error", lambda *args, **_: printed.append(args))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    fitted(network(), loss=loss)
    assert not printed
    assert loss.weight.tolist() == [1.0, 3.0]


def test_a_loss_in_double_precision(fitted):
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0], dtype=torch.float64))
    summary = fitted(network().double(), loss=loss, precision="float64")
    assert len(summary["loss"]) == 2


# -- optimizers and schedules ------------------------------------------------------------------


def groups_of_two(params):
    vectors = [p for p in params if p.dim() == 1]
    matrices = [p for p in params if p.dim() > 1]
    rates = [{"params": matrices}, {"params": vectors, "lr": 0.0}]
    return torch.optim.SGD(rates, lr=0.1)


def test_an_optimizer_of_ones_own(fitted, tmp_path):
    """Its rate counts unless `lr` does, and a group keeps its ratio: biases stand still."""
    model = network()
    before = state(model)
    fitted(model, optimizer=groups_of_two, schedule="constant")
    assert configfile.load(tmp_path / "run" / "config.yaml").optimizer.lr == 0.1
    after = state(model)
    assert torch.equal(before["0.bias"], after["0.bias"])
    assert not torch.equal(before["0.weight"], after["0.weight"])
    adam = partial(torch.optim.Adam, lr=3e-3, betas=(0.8, 0.9))
    fitted(network(), optimizer=adam, run_dir=tmp_path / "adam")
    assert configfile.load(tmp_path / "adam" / "config.yaml").optimizer.lr == 3e-3
    fitted(network(), optimizer=adam, lr=0.01, run_dir=tmp_path / "lr")
    assert configfile.load(tmp_path / "lr" / "config.yaml").optimizer.lr == 0.01
    assert load(tmp_path / "adam", network()) is not None


@pytest.mark.parametrize("name", ["adamw", torch.optim.Adam])
def test_further_keys_of_the_optimizer(fitted, tmp_path, name):
    keys = {"clip": 0.5, "warmup": 0.5, "schedule": "constant", "lr": 0.02}
    keys |= {"weight_decay": 0.3} if name == "adamw" else {}
    fitted(network(), optimizer={"name": name, **keys})
    found = vars(configfile.load(tmp_path / "run" / "config.yaml").optimizer)
    assert keys.items() <= found.items()
    assert found["name"] == (name if name == "adamw" else "given")


def test_further_keys_of_modules(fitted, tmp_path):
    fitted(network(), modules={"cuts": [1], "recompute": True})
    assert configfile.load(tmp_path / "run" / "config.yaml").modules.recompute


@pytest.mark.parametrize("other", [torch.optim.SGD, torch.optim.Rprop])
def test_a_run_does_not_go_on_with_another_optimizer(fitted, tmp_path, other):
    """Its state would be another one's; with other options it may."""
    fitted(network(), optimizer=partial(torch.optim.Adam, lr=3e-3))
    more = {"resume": True, "train": {"steps": 6}}
    with pytest.raises(UserError, match=r"is of Adam, and this run has .*; resume with the same"):
        fitted(network(), optimizer=partial(other, lr=3e-3), **more)
    load(tmp_path / "run", network())
    assert fitted(network(), optimizer=partial(torch.optim.Adam, lr=1e-3), **more)["steps"] == 6


def test_an_optimizer_of_ones_own_is_the_one_that_steps(fitted, tmp_path):
    """SGD by hand is the named one."""
    one, two = network(), network()
    fitted(one, lr=0.05)
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    fitted(two, optimizer=sgd, run_dir=tmp_path / "two")
    for name, value in state(one).items():
        assert torch.allclose(value, state(two)[name], atol=1e-6)


def test_a_schedule_of_ones_own(fitted, tmp_path):
    fitted(network(), lr=0.4, schedule=lambda step, steps: 1 / (step + 1), train={"log_every": 1})
    lines = (tmp_path / "run" / "metrics" / "stage-0.jsonl").read_text().splitlines()
    rates = [fact["lr"] for line in lines if (fact := json.loads(line))["event"] == "train"]
    assert rates == pytest.approx([0.4, 0.2, 0.4 / 3, 0.1])


# -- folders -----------------------------------------------------------------------------------


def test_resuming_gives_the_same_bytes(fitted, tmp_path):
    whole, parts = network(), network()
    adam = partial(torch.optim.Adam, lr=0.01)
    settings = {"optimizer": adam, "schedule": "constant"}
    fitted(whole, train={"steps": 6}, **settings)
    fitted(parts, train={"steps": 3}, run_dir=tmp_path / "parts", **settings)
    again = network(seed=9)  # its own weights do not matter any more
    summary = fitted(again, train={"steps": 6}, run_dir=tmp_path / "parts", resume=True, **settings)
    assert summary["resumed_after"] == 3
    assert same(state(whole), state(again))


def test_a_list_of_blocks_trains_again_after_it_was_loaded(fitted, tmp_path):
    """`load` sets all of them to evaluation mode, as any model."""
    blocks = [Scaled(), nn.BatchNorm1d(8), Scaled(), nn.Linear(8, 2)]
    fitted(blocks)
    for _ in range(2):
        load(tmp_path / "run", blocks)
    assert not any(block.training for block in blocks)
    Predictor(tmp_path / "run", model=blocks)
    fitted(blocks, run_dir=tmp_path / "again")
    assert blocks[1].num_batches_tracked == 8
    fitted(blocks, resume=True, train={"steps": 6})
    assert blocks[1].num_batches_tracked == 6


def test_a_run_is_resumed_with_its_own_modules(fitted, tmp_path):
    fitted(network(), train={"steps": 2}, run_dir=tmp_path / "two", modules=2)
    again = fitted(
        *(network(), None, None),
        **{"train": {"steps": 4}, "run_dir": tmp_path / "two", "modules": None, "resume": True},
    )
    assert (len(again["loss"]), again["resumed_after"]) == (2, 2)


def test_a_run_folder_is_never_overwritten(fitted):
    fitted(network())
    model = network()
    before = state(model)
    with pytest.raises(UserError, match="never overwritten"):
        fitted(model)
    assert same(before, state(model))


def test_the_best_checkpoint_is_loaded_by_its_name(fitted, tmp_path):
    model = network()
    fitted(
        model,
        callbacks=[BestCheckpoint()],
        train={"steps": 6, "evaluate_every": 2},
        checkpoint={"every_steps": 2, "keep": 1},
        schedule=lambda step, _: 1.0 if step < 2 else 1e-12,
        lr=0.01,
    )
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    loaded = load(tmp_path / "run", network(), step="best")
    x, y = points(20, seed=1)
    assert (loaded(x).argmax(1) == y).float().mean() == pytest.approx(best["accuracy"])
    with pytest.raises(UserError, match="no complete checkpoint 'worst'; the named ones are best"):
        load(tmp_path / "run", network(), step="worst")
    with pytest.raises(UserError, match="stands for an object of a Python program"):
        load(tmp_path / "run")
    with pytest.raises(UserError, match=r"model: does not fit .* gives \[2, 3\]"):
        load(tmp_path / "run", network(3))


def test_a_run_of_a_file_is_loaded_without_a_model(tmp_path):
    tree = {
        "model": {"name": "mlp"},
        "data": {"name": "digits", "batch_size": 32, "limit": 64},
        "train": {"steps": 1},
        "parallel": {"threads": 1},
        "run": {"dir": str(tmp_path / "run")},
    }
    summary = train(configfile.parse(tree))
    network = load(tmp_path / "run")
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert summary["steps"] == 1
    for take in (load, partial(load, exit=1), lambda run, model: Predictor(run, model=model)):
        with pytest.raises(UserError, match=r"is a run of model.name=mlp, .* leave the model out"):
            take(tmp_path / "run", nn.Linear(2, 2))


# -- where it runs -----------------------------------------------------------------------------

PROGRAM = """
import os, sys
import torch
from torch import nn
from pipeline_local import fit

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.full((8,), 0.5))
        self.register_buffer("mask", torch.arange(8) != 3)
    def forward(self, x):
        return x + self.scale * self.mask * self.linear(x).relu()

class Points(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x
    def __len__(self):
        return len(self.x)
    def __getitem__(self, index):
        return self.x[index] + 0.1 * torch.randn(8), int(self.x[index].sum() > 0)

torch.manual_seed(0)
stages, workers, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
model = nn.Sequential(Block(), Block(), nn.Linear(8, 2))
x = torch.randn(64, 8)
torch.set_num_threads(1)
summary = fit(
    model, Points(x), Points(x[:20]), stages=stages, modules=2, batch_size=16, run_dir=folder,
    loss=lambda outputs, labels: nn.functional.cross_entropy(outputs, labels),
    optimizer=lambda params: torch.optim.Adam(params, lr=0.01),
    train={"steps": 4}, parallel={"threads": 1}, data={"workers": workers},
)
if os.environ.get("RANK", "0") == "1":
    torch.save(model.state_dict(), folder + "/weights.pt")
if "RANK" not in os.environ:
    torch.save(model.state_dict(), folder + "/weights.pt")
"""


def run(arguments, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, **more)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The weights of the program in this process, with a loader process."""
    program, folder = tmp_path / "program.py", tmp_path / "one"
    program.write_text(PROGRAM)
    monkeypatch.setattr(sys, "argv", [str(program), "1", "1", str(folder)])
    runpy.run_path(str(program), run_name="__main__")
    return torch.load(folder / "weights.pt", weights_only=True)


def test_the_same_weights_here_and_on_two_ranks(tmp_path, here):
    """From standard input, where there is no file to import, with classes of its own."""
    run([sys.executable, "-", "2", "0", str(tmp_path / "two")], input=PROGRAM)
    assert same(here, torch.load(tmp_path / "two" / "weights.pt", weights_only=True))


@pytest.mark.long
def test_the_same_weights_here_and_under_torchrun(tmp_path, here):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run([*launcher, str(tmp_path / "program.py"), "2", "0", str(tmp_path / "two")])
    assert same(here, torch.load(tmp_path / "two" / "weights.pt", weights_only=True))


def launched(rank_info, folder):
    """A rank of a program, which is run twice: what `fit` gives, with its run folder."""
    os.chdir(folder)
    os.environ.update(RANK=str(rank_info.rank), WORLD_SIZE=str(rank_info.world_size))
    shown = []

    class Where(Callback):
        def on_start(self, run, step):
            shown.append(str(run.folder))

    small = {"parallel": {"threads": 1}, "head": {"name": "linear"}, "train": {"steps": 2}}
    summary = fit(network(), points(64), points(20), batch_size=16, callbacks=[Where()], **small)
    return [summary, *shown]


def test_all_ranks_of_a_launched_program_get_the_results(tmp_path, run_ranks):
    """And a second run takes another folder, the same one on all of them."""
    for name in ("runs/fit", "runs/fit-2"):
        first, second = run_ranks(launched, 2, tmp_path)
        assert first == second
        summary, folder = first
        assert folder == name
        assert summary == json.loads((tmp_path / folder / "summary.json").read_text())
        assert len(summary["accuracy"]) == 2


def test_going_on_needs_to_know_where():
    with pytest.raises(UserError, match="resume: no run_dir was given; name the folder"):
        fit(network(), points(64), points(20), epochs=1, resume=True)


def test_a_run_does_not_go_on_with_other_data(fitted):
    fitted(network())
    more = points(65), points(20, seed=1)
    with pytest.raises(UserError, match=r"number of training samples \(65, was 64\).*fit\("):
        fitted(network(), *more, resume=True, train={"steps": 8})


@pytest.mark.long
def test_a_program_beside_its_own_module(tmp_path):
    """Imported from the folder of the program, which is not the current one."""
    (tmp_path / "beside.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(*(nn.Linear(8, 8) for _ in range(3)))\n"
    )
    (tmp_path / "program.py").write_text(
        "import sys, torch\n"
        "from beside import Net\n"
        "from pipeline_local import fit\n"
        "x = torch.randn(32, 8)\n"
        "data = x, x.argmax(1)\n"
        "print(fit(Net(), data, data, stages=2, train={'steps': 2}, head={'name': 'linear'},\n"
        "          parallel={'threads': 1}, run_dir=sys.argv[1])['steps'])\n"
    )
    run([sys.executable, str(tmp_path / "program.py"), str(tmp_path / "run")], cwd="/")


@pytest.mark.long
def test_a_file_trains_on_its_stages_without_a_launcher(tmp_path):
    tree = {
        "model": {"name": "mlp"},
        "data": {"name": "digits", "batch_size": 32, "limit": 64},
        "modules": {"count": 2},
        "head": {"name": "linear"},
        "train": {"steps": 2, "log_every": 1},
        "parallel": {"threads": 1, "stages": 2},
        "run": {"dir": str(tmp_path / "run")},
    }
    summary = train(configfile.parse(tree))
    assert len(summary["peak_memory_bytes"]) == 2
    assert sorted(p.name for p in (tmp_path / "run" / "metrics").iterdir()) == [
        "stage-0.jsonl",
        "stage-1.jsonl",
    ]


@pytest.mark.long
def test_a_notebook(tmp_path):
    import nbclient
    import nbformat

    text = PROGRAM.replace("sys.argv[1]", "2").replace("sys.argv[2]", "1")
    text = text.replace("sys.argv[3]", repr(str(tmp_path / "run")))
    cells = [nbformat.v4.new_code_cell(text), nbformat.v4.new_code_cell("print(summary['steps'])")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    kernel = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    del environment["PYTEST_CURRENT_TEST"]  # with it, a kernel does not show what ranks print
    kernel.execute(env=environment)
    assert notebook.cells[1].outputs[0]["text"] == "4\n"
    shown = "".join(output.get("text", "") for output in notebook.cells[0].outputs)
    assert " steps in " in shown  # rich colours the number


def test_the_callers_state_stays(fitted, idle_threads):
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    try:
        model = network().float()
        torch.manual_seed(7)
        with torch.no_grad():
            fitted(model, parallel={"threads": 1})
            assert not torch.is_grad_enabled()
        assert torch.get_num_threads() == 2
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
    assert torch.equal(torch.rand(3), wanted)


# -- mistakes ----------------------------------------------------------------------------------


class Branches(nn.Module):
    """Two tensors are alive from the first layer to the last."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        return self.a(x) + self.b(x)


class Squeezed(nn.Module):
    """Its outputs are [B]."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.c(self.b(self.a(x))).squeeze(-1)


class Frame:
    """As a data frame: columns by name, and no samples by index."""

    def __len__(self):
        return 32

    def __getitem__(self, name):
        raise KeyError(name)

    def to_numpy(self):
        return X.numpy()


X, Y = points(32)
NETWORK = network()


class Signs(Task):
    """Two classes, with a metric of any name."""

    def __init__(self, metric="accuracy"):
        super().__init__((2,))
        self.metric = metric

    def loss(self, outputs, labels):
        return functional.cross_entropy(outputs, labels)

    def score(self, outputs, labels):
        return (outputs.argmax(1) == labels).float().mean()


def spoiled(values, place, by):
    return values.index_fill(0, torch.tensor(place), by)


MISTAKES = {
    "data.limit": (network, {"data": {"limit": 20}}, "data.limit=20 changes nothing, as samples"),
    "data.root": (network, {"data": {"root": "here"}}, "data.root=here changes nothing"),
    "data.image_size": (network, {"data": {"image_size": 8}}, "data.image_size=8 changes nothing"),
    "data.augment": (network, {"data": {"augment": "trivial"}}, "data.augment=trivial changes"),
    "data.mixup": (network, {"data": {"mixup": 0.5}}, "mixup=0.5 changes .*do it in the data set"),
    "data.on_error": (network, {"data": {"on_error": "skip"}}, "data.on_error=skip changes noth"),
    "late label beyond": (network, {"train": (X, spoiled(Y, 30, 2))}, "^train: labels .*got 2"),
    "test label beyond": (network, {"test": (X, spoiled(Y, 30, 2))}, "^test: labels .*got 2"),
    "late nan": (
        network,
        {"train": (spoiled(X, 30, float("nan")), Y)},
        "^train: inputs hold NaN or infinity, the first in sample 30; clean them",
    ),
    "test infinity": (
        network,
        {"test": (spoiled(X, 30, float("inf")), Y)},
        "^test: inputs hold NaN or infinity, the first in sample 30; clean them",
    ),
    "test label of nan": (
        lambda: network(1),
        {"train": (X, X[:, 0]), "test": (X, spoiled(X[:, 0], 30, float("nan")))},
        "^test: labels hold NaN or infinity, the first in sample 30; clean them",
    ),
    "first test label of a list": (
        network,
        {"test": [*zip(X, Y + 1, strict=True)]},
        "^test: labels must be from 0 to 1",
    ),
    "first test sample of a list": (
        network,
        {"test": [*zip(X * float("nan"), Y, strict=True)]},
        "^test: inputs hold NaN or infinity, the first in sample 0; clean them",
    ),
    "no cuts": (Branches, {}, "Branches cannot be cut .*pass an nn.Sequential"),
    "no model": (lambda: 3, {}, "model: got int; pass an nn.Module"),
    "labels beyond": (network, {"train": (X, Y + 1)}, "from 0 to 1, as the model has 2 outputs"),
    "labels negative": (network, {"train": (X, Y - 1)}, "got -1; number the classes from 0"),
    "labels of a column": (network, {"train": (X, Y[:, None])}, r"test data must look like"),
    "regression of classes": (
        network,
        {"train": (X, X[:, 0]), "test": (X, X[:, 0])},
        r"the classifier gives \[2, 2\].* the task learns \[1\]",
    ),
    "test of another shape": (
        network,
        {"test": points(20, (9,))},
        r"test data must look like training data: got x \[9\] float32",
    ),
    "test of other labels": (network, {"test": (X, X[:, 0])}, "must look like training data"),
    "loss by name": (network, {"loss": "mse"}, "loss: must be a function of outputs and .*'mse'"),
    "loss without mean": (
        network,
        {"loss": nn.CrossEntropyLoss(reduction="none")},
        r"loss: must return a scalar tensor .* got Tensor \[2\]",
    ),
    "loss is a number": (network, {"loss": lambda o, y: 3.0}, "a scalar tensor .* got float"),
    "loss without gradient": (
        network,
        {"loss": lambda o, y: (o.argmax(1) != y).float().mean()},
        "that depends on the outputs",
    ),
    "loss that fails": (network, {"loss": lambda o: o}, "loss: cannot be called with outputs"),
    "metric that fails": (network, {"metric": lambda o, y: o}, "metric: cannot be called with"),
    "task of no kind": (network, {"task": 42}, "^task: should be a name, a mapping .* got 42"),
    "task as a class": (network, {"task": Task}, "^task: .* object of a class .* got <class"),
    "loss beside a task": (
        network,
        {"task": Signs(), "loss": functional.cross_entropy},
        "^loss: changes nothing beside a Task object.* define it in Signs",
    ),
    "metric beside a task": (
        network,
        {"task": Signs(), "metric": functional.cross_entropy},
        "^metric: changes nothing beside a Task object",
    ),
    "task with a metric of a summary's": (
        network,
        {"task": Signs("steps")},
        "task.name: .* a metric called 'steps', which summaries .* another name",
    ),
    "optimizer of the whole model": (
        lambda: NETWORK,
        {"optimizer": lambda params: torch.optim.Adam(NETWORK.parameters())},
        "optimizer.name: given has made an optimizer of other parameters than those of a module",
    ),
    "optimizer that refuses": (
        network,
        {"optimizer": lambda params: torch.optim.Adam(params, lr=-1)},
        "^optimizer: cannot be made of .*ValueError: Invalid learning rate: -1.*; fix it",
    ),
    "optimizer that fails": (network, {"optimizer": lambda p: 1 / 0}, "ZeroDivisionError.*fix it"),
    "optimizer of nothing": (
        lambda: network().requires_grad_(False),
        {"optimizer": torch.optim.Adam},
        "have no trainable parameters",
    ),
    "unknown key of an optimizer": (
        network,
        {"optimizer": {"weigth_decay": 1.0}},
        "unknown key 'optimizer.weigth_decay'.*did you mean 'optimizer.weight_decay'",
    ),
    "unknown key of modules": (network, {"modules": {"cout": 2}}, "unknown key 'modules.cout'"),
    "no schedule": (network, {"schedule": None}, "^schedule: should be a name .* got None"),
    "schedule by a number": (network, {"schedule": 5}, "^schedule: should be a name .* got 5"),
    "schedule that fails": (
        network,
        {"schedule": lambda step, steps: 1 / (steps - 1 - step)},
        r"^schedule: fails for step 3 of 4 \(ZeroDivisionError.*; fix it",
    ),
    "schedule of nan": (
        network,
        {"schedule": lambda step, steps: float("nan")},
        "^schedule: must give a factor of the rate, from 0 on, got nan for step 0",
    ),
    "parallel by a number": (
        network,
        {"parallel": 2, "modules": None},
        "^parallel: should be a dict of keys with values, got 2",
    ),
    "data in a list": (network, {"train": [X, Y]}, r"^train: a sample must be a pair \(x, y\)"),
    "a data frame alone": (
        network,
        {"train": Frame()},
        "^train: data must have .* got Frame; pass",
    ),
    "data by names": (
        network,
        {"train": {"x": X, "y": Y}},
        r"^train: data must have .* got dict; pass \(x, y\) tensors",
    ),
    "an optimizer itself": (
        network,
        {"optimizer": torch.optim.SGD(network().parameters(), lr=0.1)},
        "pass what makes one of parameters, such as lambda params",
    ),
    "no optimizer": (network, {"optimizer": list}, "must return a torch optimizer .* got list"),
    "unknown optimizer": (network, {"optimizer": "sdg"}, "did you mean 'sgd'"),
    "unknown key": (network, {"heads": {"name": "linear"}}, "heads"),
    "unknown task": (network, {"task": "regresion"}, "did you mean 'regression'"),
    "too many modules": (network, {"modules": 9}, "9"),
    "too many stages": (network, {"stages": 3, "modules": 2}, "3 stages for 2 modules"),
    "batch too large": (network, {"batch_size": 99}, "batch"),
    "no batch": (network, {"batch_size": 0}, "data.batch_size: should be greater"),
    "no modules": (network, {"modules": 0}, "modules.count: should be greater"),
    "a function as callback": (network, {"callbacks": [print]}, "pass instances of Callback, got"),
    "a class as callback": (network, {"callbacks": [BestCheckpoint]}, "pass instances of Callback"),
    "no training data": (network, {"train": (X[:0], Y[:0])}, "^train: data has no samples"),
    "no test data": (network, {"test": []}, "^test: data has no samples: got an empty list"),
    "data of nan": (network, {"train": (X * float("nan"), Y)}, "samples hold NaN or infinity"),
    "one number a sample": (
        Squeezed,
        {"train": (X, X[:, 0]), "test": (X, X[:, 0])},
        r"model: must give outputs \[B, ...\] with at least one axis per sample, got \[2\]",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(fitted, tmp_path, name):
    make, settings, message = MISTAKES[name]
    settings = dict(settings)
    data = settings.pop("train", (X, Y)), settings.pop("test", (X, Y))
    model = make()
    with pytest.raises(UserError, match=message) as caught:
        fitted(model, *data, **settings)
    assert "\n" not in str(caught.value) or isinstance(caught.value, ConfigError)
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_nan_that_is_meant(fitted):
    """As asked for by the key, or where the program's own loss knows what it means."""
    late = spoiled(X, 30, float("nan"))
    assert fitted(network(), (late, Y), (X, Y), epochs=1, train={"on_nan": "skip"})["steps"] > 0

    def known(outputs, labels):
        there = labels.isfinite()[:, None].expand_as(outputs)
        return (outputs - labels[:, None])[there].square().mean()

    labels = spoiled(X[:, 0], 30, float("nan"))
    summary = fitted(network(1), (X, labels), (X, labels), loss=known, run_dir=None)
    assert all(map(isfinite, summary["loss"]))


def test_a_failure_in_the_last_evaluation_loses_no_training(fitted, tmp_path):
    late = [*zip(X, Y, strict=True)]
    late[30] = late[30][0], torch.tensor(2)
    model = network()
    with pytest.raises(UserError, match=r"labels must be from 0 to 1.* got 2"):
        fitted(model, (X, Y), late, epochs=1)
    late[30] = late[29]
    summary = fitted(model, (X, Y), late, epochs=1, resume=True)
    assert (summary["steps"], summary["resumed_after"]) == (2, 2)


def test_how_long_must_be_said():
    with pytest.raises(UserError, match="pass epochs=N or train="):
        fit(network(), (X, Y), (X, Y))


def test_weights_made_in_inference_mode_are_refused(fitted):
    """Torch lets nobody change them; other weights are trained there as anywhere."""
    model = network()
    before = model[0].weight.clone()
    with torch.inference_mode():
        fitted(model)
        assert torch.is_inference_mode_enabled()
        with pytest.raises(UserError, match=r"made in torch.inference_mode.*; make it outside"):
            fitted(network())
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("thing", [threading.Lock(), (x for x in "x")])
def test_what_cannot_be_sent_is_refused(fitted, tmp_path, thing):
    def loss(outputs, labels):
        return functional.cross_entropy(outputs, labels) if thing else None

    with pytest.raises(UserError, match=r"cannot be sent .* start the program with torchrun"):
        fitted(network(), loss=loss, stages=2)
    assert not (tmp_path / "run").exists()
