"""Images that the configuration names: their facts, and the splits that the first rank reads."""

from dataclasses import replace
from functools import lru_cache
from itertools import zip_longest

from pipeline_local.config import DataConfig
from pipeline_local.data.images.entries import ImageData, Pixels, guess_pixels
from pipeline_local.data.images.subset import Dataset, balanced_subset, check_dataset, check_image
from pipeline_local.data.info import DataInfo, Split
from pipeline_local.data.registry import DATA, own_keys, problems
from pipeline_local.errors import ConfigError, UserError, counted, few
from pipeline_local.user_input.user_code import reason


def describe(data: DataConfig) -> DataInfo:
    """Open both splits, without reading the images of a folder, and tell what they hold.

    Raises:
        ConfigError: no such data set, or wrong options of it, one line each.
        UserError: the data is missing, inconsistent, or too small for one batch.
    """
    open_split.cache_clear()  # the files may have changed since an earlier run of this process
    train, test = open_split(data, "train"), open_split(data, "test")
    if data.batch_size > len(train):
        remedy = "lower it" if data.limit is None else "lower it or raise data.limit"
        raise UserError(
            f"data.batch_size must not exceed the {len(train)} training samples: "
            f"got {data.batch_size}; {remedy}"
        )
    _check_classes(train.classes, test.classes)
    _refuse_one_class(data, train)
    side, mean, std = _pixels(data, train)
    if not DATA.comes_with_us(data.name):
        check_image(data.name, test[0][0], len(mean))
    if data.augment == "trivial" and len(mean) not in (1, 3):
        raise UserError(
            f"data.augment: trivial takes images with 1 or 3 channels, got {len(mean)} of"
            f" {data.name}; use standard or none"
        )
    shape, num_classes = (len(mean), side, side), len(train.classes)
    return DataInfo(len(train), len(test), num_classes, shape, mean, std, train.classes)


def _pixels(data: DataConfig, dataset: Dataset) -> Pixels:
    """Side and statistics of the images that the network gets."""
    entry = DATA.find(data.name)
    known = entry.pixels if isinstance(entry, ImageData) else None
    pixels = known or guess_pixels(data.name, dataset, data.image_size)
    if not DATA.comes_with_us(data.name):
        check_image(data.name, dataset[0][0], len(pixels.mean))
    return pixels._replace(size=data.image_size or pixels.size)


def check_again(data: DataConfig, info: DataInfo, split: Split) -> DataInfo:
    """The facts of a run, with the size that one split of its data has now.

    Raises:
        UserError: the split cannot be opened, is too small for one training batch, or its classes
            or its images are not those that the run was trained on.
    """
    open_split.cache_clear()
    found = open_split(data, split)
    side, mean, _ = _pixels(data, found)
    if (shape := (len(mean), side, side)) != info.sample_shape:
        got, wanted = ("x".join(map(str, s)) for s in (shape, info.sample_shape))
        raise UserError(
            f"data: the images of the {split} split are {got}, and the run was trained on {wanted};"
            f" name the data that it was trained on"
        )
    _refuse_other_classes(found.classes, info.classes, split)
    if split == "test":
        return replace(info, num_test=len(found))
    if data.batch_size > len(found):
        raise UserError(f"data: {len(found)} training samples do not fill a batch; name more")
    return replace(info, num_train=len(found))


def _refuse_other_classes(found: tuple[str, ...], trained: tuple[str, ...], split: Split) -> None:
    """As both splits of a run, they are the same; a small test split may lack the last ones."""
    if found == (trained[: len(found)] if split == "test" else trained):
        return
    pairs = zip_longest(found, trained)
    first = next(label for label, (own, name) in enumerate(pairs) if own != name)
    own, names = (few(classes[first:]) or "none" for classes in (found, trained))
    raise UserError(
        f"data: from label {first} on the {split} split has the classes {own}, and the run was"
        f" trained on {names}: labels would mean something else; name the data that it was trained"
        f" on"
    )


# Every evaluation opens the test split again: it stays in memory.
@lru_cache(maxsize=2)
def open_split(data: DataConfig, split: Split) -> Dataset:
    """One split with `data.limit` applied, its images as stored.

    Raises:
        ConfigError: no such data set, or wrong options of it, one line each.
        UserError: the data is missing or inconsistent.
    """
    if lines := problems(data):
        raise ConfigError(lines)
    options = DATA.options(data.name, data.args, own_keys(data))
    try:
        whole = DATA.find(data.name)(root=data.root, split=split, **options)
        if data.name.startswith("python:"):
            check_dataset(f"data.name: what {data.name} gives for split={split!r}", whole)
    except UserError:
        raise
    except Exception as error:
        if not data.name.startswith("python:"):
            raise
        raise UserError(
            f"data.name: {data.name} cannot open split={split!r} ({reason(error)}); fix it or"
            f" change data.*"
        ) from error
    return whole if data.limit is None else balanced_subset(whole, data.limit)


def passed_over(data: DataConfig) -> list[str]:
    """One line that counts what lies with the images of both splits and is not read; or none."""
    names: list[str] = []
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        found = open_split(data, split)
        dataset = getattr(found, "whole", found)
        names += [f"{split}: {name}" for name in getattr(dataset, "passed_over", ())]
    if not names:
        return []
    entries = counted(len(names), "file or folder is", "files and folders are")
    return [f"{entries} passed over in data.root={data.root}: {few(names)}"]


def _refuse_one_class(data: DataConfig, train: Dataset) -> None:
    labels = getattr(train, "whole", train).labels
    if int(labels.min()) == int(labels.max()):
        name = train.classes[int(labels[0])]
        hint = "" if data.root is None else " (is data.root one level too high?)"
        raise UserError(
            f"data: a single class is nothing to tell apart: all training samples are of {name!r};"
            f" name data with several classes{hint}"
        )


def _check_classes(train: tuple[str, ...], test: tuple[str, ...]) -> None:
    """Classes that are numbers only may lack the last ones in a small test split."""
    if train[: len(test)] == test:
        return
    pairs = zip(test, (*train, *[None] * len(test)), strict=False)
    number, name = next((i, a) for i, (a, b) in enumerate(pairs) if a != b)
    known = repr(train[number]) if number < len(train) else "no such class"
    raise UserError(
        f"both splits must have the same classes: got {name!r} for label {number} of the test"
        f" split, and {known} in the training split; correct either"
    )
