import json
import re
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline_local.cli import main
from pipeline_local.config import DataConfig
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import DATA
from pipeline_local.data.images import batches
from pipeline_local.data.images.arrays import ArrayDataset
from pipeline_local.data.images.batches import train_batches
from pipeline_local.data.images.datasets import describe, open_split
from pipeline_local.data.images.entries import ImageData, Pixels
from pipeline_local.data.images.subset import check_dataset
from pipeline_local.data.info import DataInfo
from pipeline_local.data.registry import problems
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.placement.draw import draw
from pipeline_local.user_input.registry import added

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def test_digits_facts():
    info = describe(DataConfig("digits"))
    assert (info.num_train, info.num_test, info.num_classes) == (1442, 355, 10)
    assert info.sample_shape == (1, 8, 8)
    pixels = open_split(DataConfig("digits"), "train").images / 255
    assert info.mean == pytest.approx((pixels.mean().item(),), abs=1e-3)
    assert info.std == pytest.approx((pixels.std().item(),), abs=1e-3)


def test_imagefolder_facts(image_root):
    info = describe(DataConfig("imagefolder", root=image_root, batch_size=2))
    assert (info.num_train, info.num_test, info.num_classes) == (9, 3, 2)
    assert info.sample_shape == (3, 224, 224)
    assert info.classes == ("ant", "bee")


def test_image_size_is_the_side_of_every_image():
    data = DataConfig("synthetic", image_size=20)
    assert describe(data).sample_shape == (3, 20, 20)
    assert open_split(data, "train")[0][0].shape == (3, 20, 20)


def test_info_survives_json():
    info = describe(DataConfig("synthetic"))
    assert DataInfo.from_json(info.to_json()) == info
    earlier = info.to_json().replace("sample_shape", "image_shape")
    assert DataInfo.from_json(earlier) == info, "as runs of earlier versions have it"


def test_limit_keeps_classes_balanced_in_both_splits():
    data = DataConfig("digits", limit=400, batch_size=400)
    info = describe(data)
    assert (info.num_train, info.num_test) == (400, 355)
    assert open_split(data, "train").labels.bincount().tolist() == [40] * 10


def test_a_batch_beyond_the_training_set_is_refused():
    data = DataConfig("digits", batch_size=1443)
    with pytest.raises(UserError, match=r"exceed the 1442 training samples: got 1443; lower it$"):
        describe(data)
    limited = replace(data, batch_size=20, limit=10)
    with pytest.raises(UserError, match=r"got 20; lower it or raise data\.limit"):
        describe(limited)


def test_a_single_class_is_refused(image_root):
    """It would be learned perfectly, and mean nothing."""
    data = DataConfig("imagefolder", root=image_root, batch_size=2)
    for split in ("train", "test"):
        shutil.rmtree(image_root / split / "bee")
    wanted = (
        r"single class .* all training samples are of 'ant'; name data .* one level too high\?\)$"
    )
    with pytest.raises(UserError, match=wanted):
        describe(data)


def test_labels_that_are_all_the_same_are_a_single_class(monkeypatch):
    zeros = torch.zeros(6, dtype=torch.int64)
    same = ArrayDataset(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), zeros, ("a", "b"))
    monkeypatch.setitem(DATA._entries, "same", lambda root, split: same)
    for limit in (None, 1):
        with pytest.raises(UserError, match="all training samples are of 'a'; name data with sev"):
            describe(DataConfig("same", batch_size=1, limit=limit))
    assert describe(DataConfig("digits", batch_size=1, limit=1)).num_train == 1, "a part of ten"


def test_a_single_output_is_refused_where_classes_are_learned():
    data = {"name": "digits", "batch_size": 32}
    config = configfile.parse({"model": {"name": "mlp"}, "data": data, "train": {"steps": 1}})
    info = replace(describe(config.data), num_classes=1)
    with pytest.raises(UserError, match=r"task\.name: classification has a single class"):
        draw(config, info)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagefolder", "webdataset", "parquet"])
def test_data_on_disk_needs_a_root(name):
    line = f"data.root is needed for data.name={name}; name the folder"
    assert problems(DataConfig(name)) == [line]
    with pytest.raises(ConfigError, match=re.escape(line)):
        describe(DataConfig(name))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (DataConfig("digit"), "data.name: got 'digit'; did you mean 'digits'"),
        (DataConfig("digits", args={"size": 8}), "unknown key 'data.size' for data.name=digits"),
        (
            DataConfig("webdataset", root=Path("x"), args={"label_feild": "x"}),
            "did you mean 'data.label_field'",
        ),
        (DataConfig("parquet", args={"image_column": 3}), "data.image_column: should be text"),
    ],
)
def test_a_wrong_name_or_option_is_one_line(data, line):
    (got,) = problems(data)
    assert line in got
    with pytest.raises(ConfigError):
        open_split(data, "train")


MINE = """
from dataclasses import dataclass
import torch
from pipeline_local.data.images.entries import ImageData, Pixels

@dataclass(frozen=True)
class Grey:
    count: int
    height: int
    labels: torch.Tensor
    classes = ("even", "odd")

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        pixels = torch.full((1, self.height, 6), index, dtype=torch.uint8)
        return pixels, index % 2

def open_grey(root, split, *, count: int = 20, height: int = 6):
    return Grey(count if split == "train" else 10, height, torch.arange(
        count if split == "train" else 10) % 2)

GREY = ImageData(open_grey, Pixels(6, (0.1,), (0.3,)), needs_root=False)

def broken(root, split):
    return 1 / 0

def lists(root, split):
    return [1, 2]

def misfit(root, split):
    return Grey(5, 6, torch.arange(5))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's, in the folder where he starts."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return f"python:{name}"


def test_an_own_function_opens_the_data(mine):
    data = DataConfig(f"{mine}:open_grey", batch_size=4, args={"count": 12})
    info = describe(data)
    assert (info.num_train, info.num_test, info.classes) == (12, 10, ("even", "odd"))
    assert (info.sample_shape, info.mean, info.std) == ((1, 6, 6), (0.5,), (0.25,))
    whole = list(train_batches(data, info, 0, 0, 5))
    for workers, start in ((0, 2), (1, 2)):
        part = train_batches(replace(data, workers=workers), info, 0, start, 3)
        for (images, labels), (x, y) in zip(part, whole[start:], strict=True):
            assert torch.equal(images, x)
            assert torch.equal(labels, y)


def test_a_run_with_own_data_resumes(mine, tmp_path, monkeypatch):
    """From the configuration to the end; stopped between epochs, it ends with the same loss."""
    monkeypatch.setitem(configfile.REGISTRIES, "data", DATA)
    (tmp_path / "c.yaml").write_text("{}")
    keys = [f"data.name={mine}:open_grey", "data.count=12", "data.batch_size=4", "model.name=mlp"]
    keys += ["parallel.threads=1", "checkpoint.every_steps=2", "train.steps=8", "data.workers=1"]
    assert main(["train", "c.yaml", *keys, "run.dir=whole"]) == 0
    shutil.copytree("whole", "half")
    for path in [*Path("half/checkpoints").glob("*8")]:
        shutil.rmtree(path)
    Path("half/summary.json").unlink()
    assert main(["train", "c.yaml", *keys, "run.dir=half", "run.resume=true"]) == 0
    whole, half = (json.loads(Path(n, "summary.json").read_text()) for n in ("whole", "half"))
    assert half["loss"] == whole["loss"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_trivial_augment_needs_colours_or_grey(mine, channels):
    with Path(f"{mine.removeprefix('python:')}.py").open("a") as file:
        file.write(
            f"""
class Wide(Grey):
    def __getitem__(self, index):
        pixels, label = super().__getitem__(index)
        return pixels.expand({channels}, -1, -1), label

def open_wide(root, split):
    return Wide(10, 6, torch.arange(10) % 2)
"""
        )
    data = DataConfig(f"{mine}:open_wide", batch_size=4, augment="trivial")
    if channels in (1, 3):
        assert describe(data).sample_shape == (channels, 6, 6)
        return
    with pytest.raises(UserError, match=rf"data\.augment: trivial .* got {channels} of python:"):
        describe(data)
    assert describe(replace(data, augment="standard")).sample_shape[0] == channels


def test_an_own_entry_knows_its_images(mine):
    info = describe(DataConfig(f"{mine}:GREY", batch_size=4))
    assert (info.sample_shape, info.mean, info.std) == ((1, 6, 6), (0.1,), (0.3,))


def test_an_entry_is_added_from_outside(mine, monkeypatch):
    monkeypatch.setattr(DATA, "_entries", {**DATA._entries})
    DATA.add("grey", DATA.find(f"{mine}:open_grey"))
    assert describe(DataConfig("grey", batch_size=4)).num_train == 20


def test_own_images_with_statistics_are_a_programs_own(monkeypatch):
    """They reach the ranks that are started, are looked at, and replace nothing of ours."""
    monkeypatch.setattr(DATA, "_entries", {**DATA._entries})
    entry = ImageData(partial(open_mine, 8), Pixels(4, (0.5,), (0.2,)), needs_root=False)
    assert DATA.add("mine", entry) is entry
    assert [each for each in added() if each[0] == "data.name"] == [("data.name", "mine", entry)]
    assert not DATA.comes_with_us("mine")
    assert DATA.comes_with_us("cifar10")
    with pytest.raises(ValueError, match="'digits' exists already, in pipeline_local"):
        DATA.add("digits", entry)
    two_channels = replace(entry, pixels=Pixels(4, (0.5,) * 2, (0.2,) * 2))
    DATA.add("mine", two_channels)
    with pytest.raises(UserError, match="mine"):
        describe(DataConfig("mine", batch_size=2))


def open_mine(count, root, split):
    images = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
    return ArrayDataset(images, torch.arange(count) % 2, ("0", "1"))


@pytest.mark.parametrize(
    ("entry", "args", "message"),
    [
        ("open_gray", {}, "has no callable 'open_gray'; did you mean 'open_grey'"),
        ("open_grey", {"cuont": 1}, "unknown key 'data.cuont'"),
        ("open_grey", {"height": 7}, "data.image_size is needed: .* images of 7x6"),
        ("open_grey", {"count": 1}, "exceed the 1 training samples"),
        ("broken", {}, r"cannot open split='train' \(ZeroDivisionError: .* line 27\)"),
        ("lists", {}, "got list without labels, classes"),
        ("misfit", {}, "must have labels in 0 to 1, one per class: got 0 to 4"),
    ],
)
def test_an_own_mistake_is_one_line(mine, entry, args, message):
    with pytest.raises(UserError, match=message) as caught:
        describe(DataConfig(f"{mine}:{entry}", batch_size=4, args=args))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1], ("a", "b"), "int64 labels .* got <class 'list'>"),
        (torch.tensor([0.0, 1.0]), ("a", "b"), r"int64 labels \[N\], got torch.float32 \[2\]"),
        (torch.tensor([0]), ("a", "b"), "one label per sample, and samples: got 1 label of 2"),
        (torch.tensor([0, 1]), ["a", "b"], "tuple of class names, got list"),
        (torch.tensor([0, -1]), ("a", "b"), "labels in 0 to 1, .* got -1 to 0"),
    ],
)
def test_what_is_no_data_set_is_refused(labels, classes, message):
    made = ArrayDataset(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), labels, classes)
    with pytest.raises(UserError, match=message):
        check_dataset("it", made)


def test_classes_must_agree_but_for_the_last_numbers(monkeypatch):
    def opened(root, split, *, test_classes: int):
        count = 4 if split == "train" else test_classes
        images = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
        return ArrayDataset(images, torch.arange(count), tuple(map(str, range(count))))

    monkeypatch.setattr(DATA, "_entries", {**DATA._entries, "mine": opened})
    data = DataConfig("mine", batch_size=2, args={"test_classes": 3})
    assert describe(data).num_classes == 4
    with pytest.raises(UserError, match="got '4' for label 4 of the test split, and no such class"):
        describe(replace(data, args={"test_classes": 5}))


FLOATS = """

def dtype_from(first, dtype):
    @dataclass(frozen=True)
    class Floats(Grey):
        def __getitem__(self, index):
            pixels, label = super().__getitem__(index)
            return (pixels / 255).to(dtype) if index >= first else pixels, label
    return lambda root, split: Floats(20, 6, torch.arange(20) % 2)

FLOAT = dtype_from(0, torch.float32)
HALF = ImageData(dtype_from(0, torch.float16), Pixels(6, (0.1,), (0.3,)), needs_root=False)
LATER = dtype_from(3, torch.float64)
"""


@pytest.mark.parametrize("entry", ["FLOAT", "HALF"])
def test_images_of_floating_point_are_refused(mine, entry):
    """They are mostly in [0, 1] already, and would be divided by 255."""
    with Path(f"{mine.removeprefix('python:')}.py").open("a") as file:
        file.write(FLOATS)
    with pytest.raises(UserError, match=r"uint8 images .* got torch.float.*\* 255"):
        describe(DataConfig(f"{mine}:{entry}", batch_size=4))


def test_an_image_that_is_unlike_the_first_is_refused(mine):
    with Path(f"{mine.removeprefix('python:')}.py").open("a") as file:
        file.write(FLOATS)
    data = DataConfig(f"{mine}:LATER", batch_size=4)
    info = describe(data)
    for read in (train_batches(data, info, 0, 0, 1), batches.test_batches(data, info)):
        with pytest.raises(UserError, match=r"must give uint8 images .* got torch\.float64"):
            next(read)
