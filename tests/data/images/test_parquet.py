"""Parquet files as Hugging Face's hub has them, and as other people write them."""

import io
import json
import pickle
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline_local.config import DataConfig
from pipeline_local.data.images import batches, parquet
from pipeline_local.data.images.datasets import describe, open_split
from pipeline_local.data.images.parquet import open_parquet
from pipeline_local.data.images.skipping import UnreadableImageError
from pipeline_local.data.skipped import Skipped
from pipeline_local.errors import UserError
from pipeline_local.seeds import generator

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

NAMES = ["ant", "bee", "cow"]


def png(name):
    pixels = torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8, generator=generator(0, name))
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "png")
    return file.getvalue()


def hub_table(numbers, names=NAMES):
    """As `datasets.Dataset.to_parquet` writes a data set with an Image and a ClassLabel."""
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in numbers]
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
    }
    table = pa.table({"image": images, "label": pa.array([i % 3 for i in numbers], pa.int64())})
    facts = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": facts})


def write(path, table, row_group_size=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


@pytest.fixture(autouse=True)
def _fresh():
    open_split.cache_clear()


def fill(folder):
    """Two training files of 15 samples in row groups of 4, one of 5 for testing."""
    write(folder / "data/train-00000-of-00002.parquet", hub_table(range(15)))
    write(folder / "data/train-00001-of-00002.parquet", hub_table(range(15, 30)))
    write(folder / "data/validation-00000-of-00001.parquet", hub_table(range(30, 35)))


@pytest.fixture
def root(tmp_path):
    fill(tmp_path)
    return tmp_path


def settings(root, **keys):
    keys = {"batch_size": 7, "image_size": 8, "augment": "standard", **keys}
    return DataConfig("parquet", root=root, **keys)


def load(data, start, count, skipped=None):
    return list(batches.train_batches(data, describe(data), 0, start, count, skipped))


def assert_same(left, right):
    for pair in zip(left, right, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


def test_any_sample_is_found_at_once(root):
    train = open_parquet(root, "train")
    assert (len(train), train.classes) == (30, tuple(NAMES))
    assert train.labels.tolist() == [i % 3 for i in range(30)]
    for index in (29, 0, 3, 4, 14, 15, 13):
        image, label = train[index]
        expected = Image.open(io.BytesIO(png(index)))
        assert image.permute(1, 2, 0).numpy().tobytes() == expected.tobytes()
        assert label == index % 3


def test_a_row_group_is_read_once_while_there_is_room(root, monkeypatch):
    reads = []
    read = parquet._read
    monkeypatch.setattr(parquet, "_read", lambda *a: reads.append(a[0]) or read(*a))
    train = open_parquet(root, "train")
    for index in [*range(30), *range(30)]:
        train[index]
    assert len(reads) == len(set(reads)) == 8
    room = train._cache._bytes * 2.5 / 8  # for two of the eight
    monkeypatch.setattr(parquet, "CACHE_BYTES", room)
    train, order = open_parquet(root, "train"), (0, 5, 1, 9, 6, 2)
    reads.clear()
    for index in order:
        train[index]
    assert [group.number for group in reads] == [0, 1, 2, 1, 0]


def test_a_loader_gets_no_cache(root):
    train = open_parquet(root, "train")
    train[0]
    again = pickle.loads(pickle.dumps(train))
    assert not again._cache._columns
    assert torch.equal(again[7][0], train[7][0])


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("img", "fine_label"), {}),
        (("image", "labels"), {}),
        (("picture", "kind"), {"image_column": "picture", "label_column": "kind"}),
    ],
)
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_columns_of_other_people(tmp_path, names, options, kind):
    images = pa.array([png(i) for i in range(6)], kind)
    labels = pa.array([0, 1] * 3, pa.uint8())
    write(tmp_path / "train.parquet", pa.table(dict(zip(names, (images, labels), strict=True))))
    write(tmp_path / "test.parquet", pa.table(dict(zip(names, (images, labels), strict=True))))
    data = DataConfig("parquet", root=tmp_path, batch_size=2, args=options)
    info = describe(data)
    assert (info.num_train, info.num_test, info.classes) == (6, 6, ("0", "1"))
    image, label = open_split(data, "train")[5]
    assert (image.shape, label) == ((3, 6, 8), 1)


def test_a_broken_image_and_none_at_all_follow_on_error(root):
    table = hub_table(range(15)).to_pylist()
    table[1]["image"]["bytes"] = b"no image"
    table[7]["image"] = None
    whole = pa.Table.from_pylist(table, schema=hub_table(range(1)).schema)
    write(root / "data/train-00000-of-00002.parquet", whole)
    with pytest.raises(UnreadableImageError, match=r"got .*00002\.parquet row [13] of row group"):
        load(settings(root), 0, 4)
    skipped = Skipped()
    data = settings(root, on_error="skip")
    found = load(data, 0, 8, skipped)
    assert skipped.facts() == {"skipped_images": 2}
    assert_same(load(settings(root, on_error="skip", workers=1), 0, 8), found)
    with pytest.raises(UnreadableImageError, match=r"row 3 of row group 1 \(nothing in column"):
        open_split(data, "train")[7]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def test_a_truncated_file_is_refused(root):
    truncate(root / "data/train-00001-of-00002.parquet")
    with pytest.raises(UserError, match=r"cannot be read: got .*00001-of.*fetch it") as caught:
        describe(settings(root))
    assert "\n" not in str(caught.value)


def test_a_file_that_vanished_is_named(root):
    train = open_parquet(root, "train")
    (root / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"cannot be read: got .*00001-of"):
        train[29]


def labels(values, kind=None):
    images = pa.array([png(0)] * len(values), pa.binary())
    return {"image": images, "label": pa.array(values, kind)}


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [1]}, {}, "data.image_column names no column: got none of image, .* are a$"),
        ({"image": [b""]}, {}, "data.label_column names no column: got none of"),
        (labels([0]), {"image_column": "x"}, "got x in .*; its columns are image, label"),
        (labels(["cat"]), {}, "must hold whole numbers: got label of string"),
        ({"image": [1.0], "label": [0]}, {}, "encoded images: got image of double"),
        (labels([0, None]), {}, "got 1 rows without label"),
        (labels([0, -1]), {}, "must be 0 or more: got -1 .*data.test_split"),
        (labels([0, 2]), {}, "got up to 2, but no sample of 1"),
        (labels([], pa.int64()), {}, "no samples: got none in the files of"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, options, message):
    write(tmp_path / "train.parquet", pa.table(columns))
    with pytest.raises(UserError, match=message) as caught:
        open_parquet(tmp_path, "train", **options)
    assert "\n" not in str(caught.value)


def test_files_that_differ_are_refused(root):
    other = hub_table(range(3)).rename_columns(["img", "label"])
    write(root / "data/train-00001-of-00002.parquet", other)
    with pytest.raises(UserError, match=r"same columns: got img\.bytes in .*00001-of"):
        open_parquet(root, "train")


def test_class_names_that_differ_between_files_are_refused(root):
    """Label 0 would be an ant here and a bee there."""
    second = root / "data/train-00001-of-00002.parquet"
    write(second, hub_table(range(15, 30), [NAMES[1], NAMES[0], *NAMES[2:]]))
    with pytest.raises(UserError, match=r"'bee' for label 0 in .*00001-of.*'ant' in .*00000-of"):
        open_parquet(root, "train")
    write(second, hub_table(range(15, 30), NAMES[:2]))
    with pytest.raises(UserError, match=r"None for label 2 in .*00001-of.*'cow' in .*00000-of"):
        open_parquet(root, "train")
    write(second, hub_table(range(15, 30)).replace_schema_metadata({}))  # has labels only
    assert open_parquet(root, "train").classes == tuple(NAMES)


def test_class_names_that_differ_between_splits_are_refused(root):
    table = hub_table(range(30, 35), ["ant", "fly", "cow"])
    write(root / "data/validation-00000-of-00001.parquet", table)
    with pytest.raises(UserError, match="got 'fly' for label 1 of the test split, and 'bee' in"):
        describe(settings(root))


def test_pyarrow_is_asked_for_where_it_is_missing(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'pipeline-local\[parquet\]'"):
        describe(settings(root))


def test_what_the_datasets_library_writes(tmp_path):
    import datasets

    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"img": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 1, 1, 0]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    train = open_parquet(tmp_path, "train")
    assert (train.classes, train.labels.tolist()) == (("no", "yes"), [0, 1, 1, 0])
    assert train[2][0].shape == (3, 6, 8)
