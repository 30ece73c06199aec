"""A finished run can be scored and exported on any machine that sees its folder."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.finished import finished
from pipeline_local.finished.exporting.export import export
from pipeline_local.learning.module import LocalModule
from pipeline_local.planning.diagnose import diagnose
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.training.train import train

TREE = {
    "model": {"name": "resnet20", "width": 4},
    "data": {"name": "digits", "batch_size": 32},
    "modules": {"count": 3},
    "train": {"steps": 3},
    "parallel": {"threads": 1},
}


@pytest.fixture
def run(tmp_path):
    config = configfile.parse({**TREE, "run": {"dir": str(tmp_path / "run")}})
    return tmp_path / "run", train(config, RankInfo())


def test_evaluation_repeats_the_runs_own(run):
    folder, summary = run
    shown = []
    facts = finished.evaluate(folder, lambda rows, facts, _: shown.append((rows, facts)))
    assert facts["accuracy"] == summary["accuracy"]
    assert facts["ensemble_accuracy"] == summary["ensemble_accuracy"]
    assert facts["ensemble_accuracy"][0] == facts["accuracy"][0], "the first head is alone"
    assert facts["loss"] == summary["loss"]
    assert len(shown[0][0]) == 3


def test_a_run_of_replicas_is_read_by_one_process(tmp_path):
    """With other keys, too, though its microbatches are dealt to several ranks."""
    folder = tmp_path / "run"
    length = {"steps": 3, "microbatches": 2}
    config = configfile.parse({**TREE, "train": length, "run": {"dir": str(folder)}})
    summary = train(config, RankInfo())
    text = (folder / "config.yaml").read_text()
    assert "replicas: 1\n" in text
    (folder / "config.yaml").write_text(text.replace("replicas: 1\n", "replicas: 2\n"))
    facts = finished.evaluate(folder, lambda *_: None, ["parallel.threads=1"])
    assert facts["accuracy"] == summary["accuracy"]
    assert len(diagnose(folder, 1, None, ["data.workers=1"])) == 3


@pytest.mark.parametrize(("size", "largest"), [(1, 1), (5, 3), (7, 4), (100, 4)])
def test_batches_of_any_size_have_microbatches_no_larger_than_in_training(
    tmp_path, monkeypatch, size, largest
):
    tree = {**TREE, "data": {**TREE["data"], "limit": 40}, "run": {"dir": str(tmp_path / "run")}}
    summary = train(
        configfile.parse({**tree, "train": {"steps": 1, "microbatches": 8}}), RankInfo()
    )
    seen, evaluate = [], LocalModule.evaluate
    monkeypatch.setattr(
        LocalModule,
        "evaluate",
        lambda self, x, *rest: seen.append(len(x)) or evaluate(self, x, *rest),
    )
    facts = finished.evaluate(tmp_path / "run", lambda *_: None, [f"data.batch_size={size}"])
    assert facts["accuracy"] == pytest.approx(summary["accuracy"])
    assert facts["loss"] == pytest.approx(summary["loss"])
    assert max(seen) == largest


def test_export_holds_the_checkpoints_weights(run, tmp_path):
    folder, _ = run
    state = export(folder, tmp_path / "deep" / "model.safetensors")
    stored = load_file(tmp_path / "deep" / "model.safetensors")
    assert stored.keys() == state.keys()
    modules = [load_file(path) for path in sorted(folder.glob("checkpoints/*/*.safetensors"))]
    assert torch.equal(stored["conv1.weight"], modules[0]["body.0.conv1.weight"])
    assert torch.equal(stored["fc.bias"], modules[-1]["head.fc.bias"])


def test_an_unfinished_run_is_refused(tmp_path):
    config = configfile.parse(TREE)
    RunFolder(tmp_path).create(config, describe(config.data).to_json())
    with pytest.raises(UserError, match="no complete checkpoint"):
        finished.load(tmp_path, torch.device("cpu"))


def draw_images(root: Path, classes: tuple[str, ...], count: int) -> None:
    for split in ("train", "test"):
        for shade, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (8, 8), (200 * shade + i, 90, i))
                image.save(root / split / name / f"{i}.png")


@pytest.fixture
def image_run(tmp_path):
    """A run on a folder of images of two classes."""
    draw_images(tmp_path / "images", ("bee", "cat"), 4)
    data = {"name": "imagefolder", "root": str(tmp_path / "images"), "image_size": 8}
    tree = {
        "model": {"name": "mlp", "hidden": 8, "depth": 2},
        "data": {**data, "batch_size": 4},
        "modules": {"count": 2},
        "head": {"name": "linear"},
        "train": {"steps": 4, "microbatches": 2},
        "parallel": {"threads": 1},
        "run": {"dir": str(tmp_path / "run")},
    }
    train(configfile.parse(tree), RankInfo())
    return tmp_path / "run", tmp_path / "images"


def silent(*_: object) -> None:
    """Shows nothing."""


def test_data_that_has_moved_is_named(image_run, tmp_path, capsys):
    run, images = image_run
    before = finished.evaluate(run, silent)
    images.rename(tmp_path / "elsewhere")
    for look in (
        lambda *o: finished.evaluate(run, silent, o),
        lambda *o: diagnose(run, 1, None, o),
    ):
        with pytest.raises(UserError, match=r"not a folder: .*; if it has moved, pass data\.root="):
            look()
        look(f"data.root={tmp_path / 'elsewhere'}", "data.workers=0")
    moved = finished.evaluate(run, silent, [f"data.root={tmp_path / 'elsewhere'}"])
    assert moved == before
    assert "Predictor takes head" in capsys.readouterr().out


def test_an_evaluation_reads_all_images_that_are_there_now_in_any_batches(image_run):
    run, images = image_run
    for i in range(3):
        Image.new("RGB", (8, 8), (200, 90, 0)).save(images / f"test/bee/more-{i}.png")  # like a cat
    facts = finished.evaluate(run, silent)
    accuracy = facts["accuracy"][-1]
    assert accuracy * 11 == pytest.approx(round(accuracy * 11)), "of eleven images"
    for size in (3, 100):
        again = finished.evaluate(run, silent, [f"data.batch_size={size}"])
        assert again["accuracy"] == pytest.approx(facts["accuracy"])
        assert again["loss"] == pytest.approx(facts["loss"])
    few = finished.evaluate(run, silent, ["data.limit=2"])["accuracy"][-1]
    assert few in (0, 0.5, 1)


def rename(images: Path) -> None:
    for split in ("train", "test"):
        (images / split / "cat").rename(images / split / "ant")


def add_class(images: Path) -> None:
    draw_images(images, ("dog",), 1)


def drop_class(images: Path) -> None:
    for split in ("train", "test"):
        (images / split / "cat").rename(images / f"{split}-cat")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (rename, "from label 0 on .* ant, bee, and the run was trained on bee, cat"),
        (add_class, "from label 2 on .* dog, and the run was trained on none"),
        (drop_class, "from label 1 on .* none, and the run was trained on cat"),
    ],
)
def test_data_of_other_classes_is_refused(image_run, change, names):
    run, images = image_run
    change(images)
    with pytest.raises(UserError, match=f"data: {names}"):
        diagnose(run, 1, None)
    if change is not drop_class:
        with pytest.raises(UserError, match=f"data: {names}"):
            finished.evaluate(run, silent)


@pytest.mark.parametrize(
    "override", ["data.image_size=16", "train.seed=1", "model.hidden=9", "data.augment=standard"]
)
def test_what_was_trained_cannot_be_changed_afterwards(image_run, override):
    run, _ = image_run
    key = override.partition("=")[0]
    with pytest.raises(
        UserError, match=rf"{key}: cannot be changed .* only data\.name, data\.root"
    ):
        finished.evaluate(run, silent, [override])
    with pytest.raises(UserError, match="cannot be changed"):
        diagnose(run, 1, None, [override])


def test_a_batch_of_another_size_is_no_other_diagnosis(image_run):
    with pytest.raises(UserError, match=r"data\.batch_size: cannot be changed"):
        diagnose(image_run[0], 1, None, ["data.batch_size=2"])


def test_images_of_another_size_are_refused(image_run):
    run, _ = image_run
    with pytest.raises(UserError, match=r"images of the test split are 1x8x8, .* trained on 3x8x8"):
        finished.evaluate(run, silent, ["data.name=digits", "data.root=null"])
