"""`predict` says of image files what the run says of its own test set."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline_local import cli
from pipeline_local.configfile import configfile
from pipeline_local.data.images.batches import test_batches as batches_of_test
from pipeline_local.data.images.datasets import open_split
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import UserError
from pipeline_local.finished.prediction import Asked, predict
from pipeline_local.finished.predictor import Predictor
from pipeline_local.fitting.fitting import fit
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.training.train import train


@pytest.fixture(scope="module")
def digits(exit_run, tmp_path_factory):
    """Files of the first test images, and these."""
    test = open_split(configfile.load(exit_run / "config.yaml").data, "test")
    images = torch.stack([test[k][0] for k in range(40)])
    folder = tmp_path_factory.mktemp("digits")
    (folder / "more").mkdir()
    for number, image in enumerate(images):
        name = f"{'more/' if number >= 30 else ''}{number:02}.png"
        Image.fromarray(image[0].numpy()).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder, images


def test_a_folder_of_files(exit_run, digits):
    folder, images = digits
    rows = list(predict(exit_run, [folder], Asked(top=3)))
    paths = sorted(folder.glob("*.png")) + sorted(folder.glob("more/*.png"))
    assert [row.path for row in rows] == [str(path) for path in paths]
    predictor = Predictor(exit_run)
    wanted = predictor(images).exp().topk(3)
    for row, values, labels in zip(rows, *wanted, strict=True):
        assert row.probabilities == pytest.approx(values.tolist(), rel=1e-5)
        assert row.classes == [predictor.classes[label] for label in labels]
        assert row.exit == predictor.heads[-1]


def test_one_head_and_early_exit(exit_run, digits):
    folder, images = digits
    first = list(predict(exit_run, [folder], Asked(exit=1, step=20)))
    wanted = Predictor(exit_run, heads=[1], step=20)(images).exp().amax(1)
    assert [row.probabilities[0] for row in first] == pytest.approx(wanted.tolist(), rel=1e-5)
    assert {row.exit for row in first} == {1}
    early = list(predict(exit_run, [folder], Asked(exit=2, confidence=0.5)))
    exits = Predictor(exit_run, upto=2).classify(images, 0.5).exits
    assert [row.exit for row in early] == exits.tolist()
    assert {row.exit for row in early} == {1, 2}


def test_files_are_read_as_the_run_reads_its_test_set(tmp_path):
    """Large, narrow and grey ones are resized and cropped alike."""
    generator = np.random.default_rng(0)
    sizes = ((30, 50, 3), (90, 70, 3), (40, 40, 3), (64, 64))
    for split in ("train", "test"):
        for name in ("bee", "cat"):
            (tmp_path / split / name).mkdir(parents=True)
            for number, size in enumerate(sizes):
                pixels = generator.integers(0, 256, size, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    tree = {
        "model": {"name": "mlp", "hidden": 8, "depth": 2},
        "data": {"name": "imagefolder", "root": str(tmp_path), "image_size": 16, "batch_size": 8},
        "modules": {"count": 2},
        "head": {"name": "linear"},
        "train": {"steps": 2},
        "parallel": {"threads": 1},
        "run": {"dir": str(tmp_path / "run")},
    }
    config = configfile.parse(tree)
    train(config, RankInfo())
    info = DataInfo.from_json(RunFolder(tmp_path / "run").load_info())
    ((images, labels),) = list(batches_of_test(config.data, info))
    wanted = Predictor(tmp_path / "run", heads="all").classify(images).probabilities
    assert len({*map(tuple, wanted.tolist())}) == 8
    rows = list(predict(tmp_path / "run", [tmp_path / "test"], Asked(exit=2)))
    alone = Predictor(tmp_path / "run", heads=[2]).classify(images).probabilities.amax(1)
    assert [row.probabilities[0] for row in rows] == pytest.approx(alone.tolist(), rel=1e-5)
    assert labels.tolist() == [0] * 4 + [1] * 4, "in the order of the names"


def test_the_command(exit_run, digits, tmp_path, capsys):
    folder, _ = digits
    file, image = tmp_path / "said.json", str(folder / "03.png")
    arguments = ["predict", str(exit_run), image, "--top", "2", "--confidence", "0.6", "--json"]
    assert cli.main([*arguments, str(file)]) == 0
    (row,) = json.loads(file.read_text())
    (line,) = capsys.readouterr().out.splitlines()
    pairs = zip(row["classes"], row["probabilities"], strict=True)
    classes = ", ".join(f"{name} {p:.1%}" for name, p in pairs)
    assert line == f"{image}: {classes} (exit {row['exit']})"
    assert cli.main([*arguments, str(file)]) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nothing.png"], "IMAGE: nothing.png does not exist"),
        (["broken.png"], "IMAGE: broken.png cannot be read"),
        (["empty"], "IMAGE: empty has no images"),
        (["broken.png", "--exit", "4"], "--exit: must be a module from 1 to 3, got 4"),
        (["broken.png", "--exit", "0"], "--exit: must be a module from 1 to 3, got 0"),
        (["broken.png", "--confidence", "1.5"], "--confidence: must be above 0"),
        (["broken.png", "--confidence", "nan"], "--confidence: must be above 0"),
        (["broken.png", "--top", "0"], "--top: must be at least 1"),
        (["broken.png", "--checkpoint", "best"], "no complete checkpoint 'best'"),
    ],
)
def test_what_is_asked_badly(exit_run, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    assert cli.main(["predict", str(exit_run), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_runs_that_take_no_image_files(tmp_path):
    image = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    with pytest.raises(UserError, match="is not a run folder"):
        list(predict(tmp_path, [image], Asked()))
    x, y = torch.randn(20, 6), torch.arange(20) % 2
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    run = tmp_path / "run"
    fit(network, (x, y), (x, y), run_dir=run, epochs=1, batch_size=10, parallel={"threads": 1})
    with pytest.raises(UserError, match="Predictor") as error:
        list(predict(run, [image], Asked()))
    assert len(str(error.value).splitlines()) == 1


def test_names_that_start_with_a_dot_are_passed_over(exit_run, tmp_path):
    """As training does: systems put files of their own beside images."""
    folder = tmp_path / ".photos"
    (folder / ".cache").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "a.png")
    for hidden in ("._a.png", ".cache/b.png"):
        (folder / hidden).write_text("no image")
    (found,) = predict(exit_run, [folder], Asked())
    assert found.path == str(folder / "a.png")


def test_a_name_that_is_too_long(exit_run):
    with pytest.raises(UserError, match="does not exist"):
        list(predict(exit_run, [Path("a" * 300 + ".png")], Asked()))
