"""Shards as people have them, written here by tarfile."""

import dataclasses
import io
import json
import pickle
import tarfile

import pytest
import torch
from PIL import Image

from pipeline_local.config import DataConfig
from pipeline_local.data.images import batches, webdataset
from pipeline_local.data.images.datasets import describe, open_split
from pipeline_local.data.images.skipping import UnreadableImageError
from pipeline_local.data.images.webdataset import open_webdataset
from pipeline_local.data.skipped import Skipped
from pipeline_local.errors import UserError
from pipeline_local.seeds import generator

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def png(name):
    """A random image of 6x8 pixels, and its encoding."""
    pixels = torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8, generator=generator(0, name))
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "png")
    return file.getvalue()


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))


def samples(first, last):
    """Members of the samples `first` to `last - 1`: label is the number modulo 3."""
    for i in range(first, last):
        yield f"n/{i:04d}.png", png(i)
        yield f"n/{i:04d}.cls", str(i % 3).encode()


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    webdataset._index.cache_clear()
    open_split.cache_clear()


def fill(folder):
    """Three training shards of 10 samples, one of 5 for testing."""
    for number in range(3):
        write(folder / f"train-{number:06d}.tar", samples(10 * number, 10 * number + 10))
    write(folder / "val-000000.tar", samples(30, 35))


@pytest.fixture
def root(tmp_path):
    fill(tmp_path)
    return tmp_path


def settings(root, **keys):
    keys = {"batch_size": 7, "image_size": 8, "augment": "standard", **keys}
    return DataConfig("webdataset", root=root, **keys)


def load(data, start, count, skipped=None):
    return list(batches.train_batches(data, describe(data), 0, start, count, skipped))


def assert_same(left, right):
    for pair in zip(left, right, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


def test_any_sample_is_found_at_once(root):
    train = open_webdataset(root, "train")
    assert (len(train), train.classes) == (30, ("0", "1", "2"))
    assert train.labels.tolist() == [i % 3 for i in range(30)]
    for index in (29, 0, 10, 13):
        image, label = train[index]
        expected = Image.open(io.BytesIO(png(index)))
        assert image.permute(1, 2, 0).numpy().tobytes() == expected.tobytes()
        assert label == index % 3


@pytest.mark.parametrize(
    "name", ["train/0.tar", "train-0.tar", "imagenet1k-train-0000.tar", "data/train_01.tar"]
)
def test_layouts(tmp_path, name):
    write(tmp_path / name, samples(0, 4))
    write(tmp_path / "constraint-01.tar", samples(0, 9))  # "train" is no word of this name
    assert len(open_webdataset(tmp_path, "train")) == 4


def test_the_test_split_is_test_or_val_or_what_is_named(root):
    assert len(open_webdataset(root, "test")) == 5
    write(root / "test/0.tar", samples(0, 2))
    assert len(open_webdataset(root, "test")) == 2
    data = settings(root, args={"test_split": "val"})
    assert describe(data).num_test == 5


def test_labels_in_json(tmp_path):
    def members(key):
        for i in range(4):
            yield f"{i}.json", json.dumps({key: i % 2, "width": 8}).encode()
            yield f"{i}.JPG", png(i)

    write(tmp_path / "train/0.tar", members("label"))
    write(tmp_path / "test/0.tar", members("number"))
    assert open_webdataset(tmp_path, "train").labels.tolist() == [0, 1, 0, 1]
    assert open_webdataset(tmp_path, "test", label_field="number").labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(UserError, match=r"got .*test/0\.tar/0 with jpg, json; .* 'label'"):
        open_webdataset(tmp_path, "test")


def test_class_names_from_a_file(root):
    (root / "classnames.txt").write_text("ant\nbee\ncow\ndog\n")
    assert describe(settings(root)).classes == ("ant", "bee", "cow", "dog")
    (root / "classnames.txt").write_text("ant\nbee\n")
    open_split.cache_clear()
    with pytest.raises(UserError, match=r"got 2 in the shards of .* for 2 class names"):
        describe(settings(root))


def test_lines_of_class_names_as_editors_leave_them(root):
    file = root / "classnames.txt"
    file.write_bytes(b"\xef\xbb\xbfant\r\nbee\r\ncow\r\n\r\n")
    assert describe(settings(root)).classes == ("ant", "bee", "cow")
    file.write_text("ant\n \nbee\ncow\n")
    open_split.cache_clear()
    with pytest.raises(UserError, match=r"an empty line 2 in .*classnames\.txt"):
        describe(settings(root))


def test_a_shard_without_samples_adds_none(root):
    write(root / "train-000003.tar", [])
    train = open_webdataset(root, "train")
    assert (len(train), train.places.dtype, train.labels.dtype) == (30, torch.int64, torch.int64)
    assert train[3][1] == 0


def test_the_index_is_kept_until_a_shard_changes(root, monkeypatch):
    first = open_webdataset(root, "train")
    webdataset._index.cache_clear()
    scanned = []
    scan = webdataset._scan
    monkeypatch.setattr(webdataset, "_scan", lambda *a: scanned.append(a[0]) or scan(*a))
    again = open_webdataset(root, "train")
    assert not scanned
    assert torch.equal(again.places, first.places)
    write(root / "train-000001.tar", samples(0, 5))
    assert len(open_webdataset(root, "train")) == 25
    assert len(scanned) == 3


def test_a_cache_that_is_no_folder_is_done_without(root):
    (root / "cache").write_text("")
    assert len(open_webdataset(root, "train")) == 30


def test_a_damaged_cache_is_made_again(root):
    open_webdataset(root, "train")
    webdataset._index.cache_clear()
    (kept,) = (root / "cache/pipeline_local").iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert len(open_webdataset(root, "train")) == 30


def test_it_travels_to_a_loader(root):
    train = pickle.loads(pickle.dumps(open_webdataset(root, "train")))
    assert train[3][1] == 0


def test_a_broken_image_and_none_at_all_follow_on_error(root):
    broken = [("9.png", b"no image"), ("9.cls", b"0"), ("10.cls", b"1"), ("10.txt", b"x")]
    write(root / "train-000001.tar", [*samples(0, 8), *broken])
    with pytest.raises(UnreadableImageError, match=r"train-000001\.tar/(9\.png|10\.cls)"):
        load(settings(root), 0, 4)
    skipped = Skipped()
    data = settings(root, on_error="skip")
    whole = load(data, 0, 8, skipped)
    assert skipped.facts() == {"skipped_images": 2}
    assert_same(load(settings(root, on_error="skip", workers=1), 0, 8), whole)
    train = open_split(data, "train")
    with pytest.raises(UnreadableImageError, match=r"10\.cls \(no jpg, jpeg, png, webp in this"):
        train[19]


def test_a_shard_that_vanished_is_named(root):
    train = open_webdataset(root, "train")
    (root / "train-000002.tar").unlink()
    with pytest.raises(UnreadableImageError, match=r"got .*train-000002\.tar \(.*No such file"):
        train[29]


def truncate_in_image(path):
    path.write_bytes(path.read_bytes()[:700])


def truncate_in_header(path):
    path.write_bytes(path.read_bytes()[:1800])


def truncate_after_a_sample(path):
    with tarfile.open(path) as shard:
        end = shard.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[:end])


def damage_a_header(path):
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as shard:
        at = shard.getmembers()[4].offset
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def compress(path):
    content = path.read_bytes()
    with tarfile.open(path, "w:gz") as shard:
        member = tarfile.TarInfo("x.png")
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    "damage",
    [
        truncate_in_image,
        truncate_in_header,
        truncate_after_a_sample,
        damage_a_header,
        empty,
        compress,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_shard_is_refused(root, damage):
    damage(root / "train-000001.tar")
    with pytest.raises(UserError, match=r"a shard .*got .*train-000001\.tar.*fetch it") as caught:
        describe(settings(root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x"), ("a.png", b"y")], "got a second png of a in"),
        ([("a.png", b"x"), ("a.jpg", b"y")], "got a second jpg of a in"),
        ([("a.png", b"x"), ("a.txt", b"0")], r"has no label: got .*0\.tar/a with png, txt"),
        ([("a.png", b"x"), ("a.cls", b"cat")], "has no label: got"),
        ([("a.png", b"x"), ("a.json", b"[")], "has no label: got"),
        ([("a.png", b"x"), ("a.json", b'{"label": "cat"}')], "has no label: got"),
        ([("a.png", b"x"), ("a.cls", b"-1")], "must be 0 or more: got -1"),
        ([("a.png", b"x"), ("a.cls", b"1")], "got up to 1, but no sample of 0"),
        ([("README", b"x"), (".hidden.png", b"y")], "no samples: got none in the shards of"),
    ],
)
def test_samples_that_cannot_be_learnt_from_are_refused(tmp_path, members, message):
    write(tmp_path / "train/0.tar", members)
    with pytest.raises(UserError, match=message) as caught:
        open_webdataset(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_labels_that_only_the_test_split_has_are_refused(root):
    write(root / "val-000000.tar", [("a.png", png(0)), ("a.cls", b"3")])
    with pytest.raises(UserError, match="got '3' for label 3 of the test split, and no such class"):
        describe(settings(root))


def test_no_shards_are_no_data_set(tmp_path):
    with pytest.raises(UserError, match=r"has no \.tar files of the train split: got .*; put them"):
        open_webdataset(tmp_path, "train")
    with pytest.raises(UserError, match="not a folder: got"):
        open_webdataset(tmp_path / "lost", "train")
    (tmp_path / "train-0.tar").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot be read: got .*nowhere|train-0\.tar"):
        open_webdataset(tmp_path, "train")


def test_long_names_and_folders_in_names_are_keys(tmp_path):
    key = "folder.d/" + "k" * 200
    write(tmp_path / "train/0.tar", [(f"{key}.png", png(0)), (f"{key}.cls", b"0")])
    train = open_webdataset(tmp_path, "train")
    assert len(train) == 1
    assert train[0][0].shape == (3, 6, 8)


def test_a_part_is_a_part_of_shards(root):
    data = dataclasses.replace(settings(root), limit=9, batch_size=9)
    assert open_split(data, "train").labels.bincount().tolist() == [3, 3, 3]


def test_what_lies_beside_the_shards_is_named(tmp_path):
    write(tmp_path / "deep/train/0.tar", samples(0, 4))
    assert open_webdataset(tmp_path / "deep", "train").passed_over == ()
    for name in ("1.tar.gz", ".hidden", "more"):
        (tmp_path / "deep/train" / name).write_bytes(b"x")
    assert open_webdataset(tmp_path / "deep", "train").passed_over == ("1.tar.gz", "more")
    for name in ("set-train-0.tar", "set-train-1.tgz", "set-val-0.tar", "set-val.txt", "README"):
        write(tmp_path / "flat" / name, samples(0, 4))
    assert open_webdataset(tmp_path / "flat", "train").passed_over == ("set-train-1.tgz",)
    assert open_webdataset(tmp_path / "flat", "test").passed_over == ("set-val.txt",)
