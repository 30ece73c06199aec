"""Broken images are passed over in the same way whoever loads them, and are counted."""

import dataclasses
import json
import pickle

import pytest
import torch

from pipeline_local.cli import main
from pipeline_local.config import DataConfig
from pipeline_local.data.images import batches
from pipeline_local.data.images.datasets import describe, open_split
from pipeline_local.data.images.skipping import UnreadableImageError, read_or_next
from pipeline_local.data.skipped import Skipped
from pipeline_local.errors import UserError
from pipeline_local.layout import IGNORE_LABEL

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

BROKEN = ["train/ant/b.JPEG", "train/bee/i.jpeg", "test/ant/k.png"]


@pytest.fixture
def root(image_root):
    """Of nine training and three test images, two and one are broken."""
    for name in BROKEN:
        (image_root / name).write_bytes(b"no image")
    return image_root


def settings(root, **keys):
    keys = {"batch_size": 4, "image_size": 8, "augment": "standard", **keys}
    return DataConfig("imagefolder", root=root, on_error="skip", **keys)


def load(data, start, count):
    skipped = Skipped()
    found = list(batches.train_batches(data, describe(data), 0, start, count, skipped))
    return found, skipped


def assert_same(left, right):
    for pair in zip(left, right, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


def test_the_next_readable_image_of_the_class_stands_in(root):
    train = open_split(settings(root), "train")
    skipped = []
    image, label = read_or_next(train, 1, skipped)
    assert torch.equal(image, train[2][0])
    assert label == 0
    image, label = read_or_next(train, 8, skipped)  # behind the last, the first of its class
    assert torch.equal(image, train[5][0])
    assert label == 1
    assert skipped == [f"{root}/{name}" for name in BROKEN[:2]]


def test_what_can_be_read_is_as_without_the_key(root):
    train = open_split(settings(root), "train")
    skipped = []
    for index in (0, 2, 3, 4, 5, 6, 7):
        assert torch.equal(read_or_next(train, index, skipped)[0], train[index][0])
    assert not skipped


def test_batches_depend_on_nothing_but_the_step(root):
    """Not on loader processes, nor on where the run was resumed."""
    whole, skipped = load(settings(root), 0, 8)
    assert skipped.facts() == {"skipped_images": 2}
    loaded, also_skipped = load(settings(root, workers=2), 0, 8)
    assert_same(loaded, whole)
    assert also_skipped.warnings() == skipped.warnings()
    assert_same(load(settings(root), 3, 5)[0], whole[3:])


def test_a_part_of_the_data_set_stands_in_for_itself_only(root):
    """data.limit chooses samples; what it left out is not let in again."""
    part = open_split(settings(root, limit=4), "train")
    assert part.labels.tolist() == [0, 0, 1, 1]
    image, _ = read_or_next(part, 1, [])
    assert torch.equal(image, part[0][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_test_image_counts_nowhere(root, workers):
    data = settings(root, workers=workers)
    skipped = Skipped()
    ((images, labels),) = batches.test_batches(data, describe(data), skipped)
    assert labels.tolist() == [0, IGNORE_LABEL, 1, IGNORE_LABEL]
    assert torch.equal(images[1], images[0]), "an image without a label, and not an empty one"
    (line,) = skipped.warnings()
    assert line.endswith(f"left out: {root}/{BROKEN[2]}")


def test_a_class_without_readable_images_is_refused(root):
    for path in (root / "train/bee").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="not one training image of class 'bee'"):
        load(settings(root), 0, 2)


def test_a_test_set_without_readable_images_is_refused(root):
    """By its last batch: nobody asks for another one."""
    for path in root.glob("test/*/*"):
        path.write_bytes(b"no image")
    data = settings(root, batch_size=2)
    tests = batches.test_batches(data, describe(data))
    next(tests)
    with pytest.raises(UserError, match="not one test image can be read"):
        next(tests)


def test_fail_is_the_default_and_names_the_remedy(root):
    data = dataclasses.replace(settings(root), on_error="fail")
    with pytest.raises(UnreadableImageError, match=r"repair or remove it, or .*on_error=skip$"):
        load(data, 0, 8)


def test_the_error_travels_between_processes():
    error = UnreadableImageError("a/b.png", "no image")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, str(again)) == ("a/b.png", str(error))


def test_a_warning_names_the_first_few_once_each():
    skipped = Skipped()
    assert (skipped.warnings(), skipped.facts()) == ([], {})
    for name in "abcabcde":
        skipped.add([name])
    assert skipped.facts() == {"skipped_images": 5}
    assert skipped.warnings() == ["5 images could not be read and left out: a, b, c and 2 more"]


def test_a_run_tells_how_many(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["model.name=resnet20", "model.width=2", "train.epochs=3", "train.log_every=1"]
    arguments += ["data.name=imagefolder", f"data.root={root}", "data.batch_size=4"]
    arguments += ["data.image_size=8", "data.on_error=skip", "parallel.threads=1", "run.dir=out"]
    (tmp_path / "c.yaml").write_text("{}")
    assert main(["train", "c.yaml", *arguments]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 3 images could not be read and left out: ")
    facts = [json.loads(x) for x in (tmp_path / "out/metrics/stage-0.jsonl").read_text().split("\n")
             if x]  # fmt: skip
    assert [f for f in facts if f["event"] == "train"][-1]["skipped_images"] == 3
    assert main(["evaluate", "out"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 1 image could not be read")
