"""Data that a program hands in: tensors, a Dataset, a DataLoader, or a Hugging Face data set.

Whatever it is, a sample becomes a pair of tensors found by its index, so that a batch is a pure
function of its step (`given_batches.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from pipeline_local.data.columns import IMAGE_COLUMNS, LABEL_COLUMNS
from pipeline_local.data.samples import (
    CollatedSamples,
    Form,
    ItemSamples,
    Samples,
    TensorSamples,
    as_input,
    as_target,
    different,
)
from pipeline_local.errors import UserError
from pipeline_local.seeds import generators_kept, seed_generators

INPUT_COLUMNS = (*IMAGE_COLUMNS, "pixel_values", "input_ids", "x", "features", "inputs")
TARGET_COLUMNS = (*LABEL_COLUMNS, "y", "targets")
"""The columns that are looked for in a sample that is a dict; the first one that is there."""


@dataclass(frozen=True)
class GivenSamples:
    """Samples, and how whoever handed them in wants them loaded."""

    samples: Samples
    form: Form
    batch_size: int | None = None
    """None: it was not said."""
    workers: int | None = None
    """Loader processes; None: it was not said."""
    shuffled: bool = True
    """Whether training visits the samples in a new order in each epoch."""


def given(data: object) -> GivenSamples:
    """Take over a user's own data.

    What draws random numbers while a sample is read, such as a random crop, becomes a function of
    (seed, epoch, sample): torch's, Python's and NumPy's global generators are seeded for each
    sample and put back. A generator that the data set owns, or that of a GPU, is beyond reach.

    Args:
        data: one of

            - a pair of tensors, NumPy arrays or pandas objects, x [N, ...] and y [N, ...];
            - a map-style `Dataset`, or anything with a length and an index, of (x, y) pairs;
            - a `DataLoader`: its data set, batch_size, collate_fn and num_workers are taken over.
              Its own shuffling is replaced by one that can be resumed at any step; a sequential one
              stays sequential. The last, smaller batch is left out of training;
            - a Hugging Face `datasets.Dataset`, or any other data set of dicts. An image becomes
              float32 [C, H, W] in [0, 1]. The columns are found by their names: `INPUT_COLUMNS`
              and `TARGET_COLUMNS`.

    Returns:
        Samples whose integer targets are int64 and whose boolean ones are float32.

    Raises:
        UserError: no samples, none that are found by index, or samples of different shapes.
    """
    if isinstance(data, DataLoader):
        return _from_loader(data)
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = tuple(data.tensors)
    if isinstance(data, tuple) and len(data) == 2 and all(map(_is_array, data)):
        return _checked(_in_memory(*data))
    return _checked(_by_index(data))


def _is_array(value: object) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) or hasattr(value, "to_numpy")


def _in_memory(*pair: Any) -> TensorSamples:  # noqa: ANN401 (what `_is_array` knows)
    x, y = (each.to_numpy() if hasattr(each, "to_numpy") else each for each in pair)
    inputs, targets = as_input(x), as_target(y)
    if not inputs.ndim or not targets.ndim or len(inputs) != len(targets):
        raise UserError(
            f"x and y must have one entry per sample each: got {list(inputs.shape)} and"
            f" {list(targets.shape)}; make their first dimensions equal"
        )
    return TensorSamples(inputs, targets)


def _by_index(data: object) -> ItemSamples:
    """Any map-style data set: its samples are pairs, or dicts with two columns."""
    keyed = isinstance(data, IterableDataset | Mapping) or _is_array(data)
    if keyed or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UserError(
            f"data must have a length and samples by index, so that any step can be resumed: got"
            f" {type(data).__name__}; pass (x, y) tensors or a map-style Dataset"
        )
    if not len(data):
        raise UserError(f"data has no samples: got an empty {type(data).__name__}; add some")
    names = getattr(data, "column_names", None)
    if names is None:
        with generators_kept():
            first = data[0]
        names = list(first) if isinstance(first, dict) else None
    return ItemSamples(data, None if names is None else _columns(names))


def _columns(names: Sequence[str]) -> tuple[str, str]:
    target = _column(names, TARGET_COLUMNS, "y")
    return _column([n for n in names if n != target], INPUT_COLUMNS, "x"), target


def _column(names: Sequence[str], known: Sequence[str], role: str) -> str:
    for name in known:
        if name in names:
            return name
    raise UserError(
        f"no column for {role}: got {', '.join(names)}, of which none is {' or '.join(known)};"
        f" rename one, or pass pairs (x, y)"
    )


def _from_loader(loader: "DataLoader[Any]") -> GivenSamples:
    """The data set of a DataLoader, with its settings."""
    if isinstance(loader.dataset, IterableDataset):
        return given(loader.dataset)  # is refused
    _check_sampler(loader)
    if loader.collate_fn is default_collate or loader.batch_sampler is None:
        whole = given(loader.dataset)
    else:
        whole = _checked(CollatedSamples(loader.dataset, loader.collate_fn))
    return replace(
        whole,
        batch_size=getattr(loader.batch_sampler, "batch_size", None),
        workers=loader.num_workers,
        shuffled=not isinstance(loader.sampler, SequentialSampler),
    )


def _check_sampler(loader: "DataLoader[Any]") -> None:
    sampler, batches = loader.sampler, loader.batch_sampler
    known = (SequentialSampler, RandomSampler, DistributedSampler)
    odd = type(sampler) not in known or getattr(sampler, "replacement", False)
    if odd or type(batches) not in (BatchSampler, type(None)):
        name = type(sampler if odd else batches).__name__
        raise UserError(
            f"a DataLoader's sampler is replaced, so it must visit every sample once: got {name};"
            f" pass a Dataset that holds what is to be visited (such as torch's Subset)"
        )


def _checked(samples: Samples) -> GivenSamples:
    """The first two samples must have one form; the others are checked when they are read."""
    if not len(samples):
        raise UserError("data has no samples: got none; add some")
    forms = []
    with generators_kept():
        for index in range(min(2, len(samples))):
            seed_generators(index)
            forms.append(Form.of(*samples[index]))
    if forms[0] != forms[-1]:
        raise different(forms[0], forms[-1], "sample 1")
    return GivenSamples(samples, forms[0])
