"""Whether what a program hands to `fit` belongs together: the splits, the task, its functions."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline_local.config import Config
from pipeline_local.data.datasets import GivenData
from pipeline_local.data.given import GivenSamples
from pipeline_local.data.samples import Form, Samples, TensorSamples
from pipeline_local.errors import UserError
from pipeline_local.fitting.arguments import is_language
from pipeline_local.given.given import Given, handed
from pipeline_local.learning.tasks import Task
from pipeline_local.placement.draw import make_task
from pipeline_local.seeds import generators_kept
from pipeline_local.user_input.user_code import reason

_PART = 2**24
"""Numbers of inputs that are looked at in one go."""


def with_data(objects: Given, config: Config, train: GivenSamples, test: GivenSamples) -> Given:
    """Return the objects with both splits, once all of them fit each other.

    Raises:
        UserError: they do not.
    """
    _check_alike(train.form, test.form)
    outputs, size = objects.output_shape, config.data.batch_size
    num_classes = outputs[-1 if is_language(objects, train) else 0]
    data = GivenData(train, test, num_classes, size, config.data.workers)
    with handed(objects):
        task = make_task(config, data.describe())
    for name, split in (("train", train), ("test", test)):
        _check_values(name, split, task, objects, config.train.on_nan)
    double = config.precision == "float64"
    _try_functions(objects, task, train, torch.float64 if double else torch.float32)
    return replace(objects, data=replace(data, accept=task.accept))


def _check_values(name: str, split: GivenSamples, task: Task, objects: Given, on_nan: str) -> None:
    """Whatever is in memory, and the first samples of any other data.

    What NaN means in a label is a program's own business, if its loss is.
    """
    own_labels = objects.task is not None or objects.loss is not None
    for first, x, y in _parts(split.samples):
        try:
            task.accept(y)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        for what, values in (("inputs", x), ("labels", y)):
            if on_nan == "skip" or (what == "labels" and own_labels) or values.isfinite().all():
                continue
            finite = values.isfinite().flatten(1).all(1) if values.ndim > 1 else values.isfinite()
            raise UserError(
                f"{name}: {what} hold NaN or infinity, the first in sample"
                f" {first + int(finite.long().argmin())}; clean them, or pass"
                " train={'on_nan': 'skip'} for a model that takes them"
            )


def _parts(samples: Samples) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Index of the first sample, inputs and labels; a mapped file is read part by part."""
    if not isinstance(samples, TensorSamples):
        with generators_kept():
            pairs = [samples[index] for index in range(min(2, len(samples)))]
        xs, ys = zip(*pairs, strict=True)
        yield 0, torch.stack(xs), torch.stack(ys)
        return
    size = max(1, _PART // max(1, samples.x[0].numel()))
    for first in range(0, len(samples), size):
        yield first, samples.x[first : first + size], samples.y[first : first + size]


def _check_alike(train: Form, test: Form) -> None:
    same = train.x_shape == test.x_shape and train.y_shape == test.y_shape
    kinds = [(f.x_dtype.is_floating_point, f.y_dtype.is_floating_point) for f in (train, test)]
    if not same or kinds[0] != kinds[1]:
        raise UserError(
            f"test data must look like training data: got {test} for a test sample, and {train} for"
            f" a training sample; crop, pad or convert one of them"
        )


def _try_functions(
    objects: Given, task: Task, train: GivenSamples, dtype: torch.dtype = torch.float32
) -> None:
    """A loss and a metric of the program's own, on two samples and outputs of this dtype."""
    with generators_kept():
        pairs = [train.samples[index] for index in range(len(objects.example))]
    labels = task.accept(torch.stack([y for _, y in pairs]))
    outputs = torch.zeros(len(labels), *task.output_shape, dtype=dtype, requires_grad=True)
    for key, function in (("loss", objects.loss), ("metric", objects.metric)):
        if function is None:
            continue
        got = _called(key, function, outputs, labels)
        if key == "loss" and not (
            isinstance(got, Tensor) and got.shape == () and got.requires_grad
        ):
            shape = f" {list(got.shape)}" if isinstance(got, Tensor) else ""
            raise UserError(
                f"loss: must return a scalar tensor that depends on the outputs, got"
                f" {type(got).__name__}{shape} for outputs {list(outputs.shape)}; take its mean"
            )


def _called(
    key: str, function: Callable[[Tensor, Tensor], Any], outputs: Tensor, labels: Tensor
) -> Any:  # noqa: ANN401 (whatever it gives)
    if not callable(function):
        raise UserError(
            f"{key}: must be a function of outputs and labels, got {function!r}; pass one, such as"
            f" torch.nn.functional.mse_loss"
        )
    try:
        with torch.enable_grad():
            got = function(outputs if key == "loss" else outputs.detach(), labels)
        return got if key == "loss" else float(got)
    except Exception as error:  # the program's own code
        raise UserError(
            f"{key}: cannot be called with outputs {list(outputs.shape)} and labels"
            f" {list(labels.shape)} {labels.dtype} ({reason(error)}); fix it, or the data"
        ) from error
