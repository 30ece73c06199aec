"""Samples as pairs of tensors, read one by one or gathered into a batch."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline_local.data.images.decode import has_16_bits
from pipeline_local.errors import UserError
from pipeline_local.seeds import derive, generators_kept, seed_generators

Pair = tuple[Tensor, Tensor]
Collate = Callable[[list[Any]], Any]
Key = tuple[int, int]
"""Index of a sample, and the seed with which it is read."""


class Samples(Protocol):
    """Samples by index: `x, y = samples[index]`, all of one shape and dtype."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...

    def gather(self, keys: Sequence[Key], form: "Form") -> Pair:
        """A batch: x [B, ...] and y [B, ...] of B samples.

        Args:
            keys: of each sample its index, and the seed of what is random in reading it.
            form: that every sample must have.

        Raises:
            UserError: one has another form, or is no sample.
        """


@dataclass(frozen=True)
class Form:
    """Shapes and dtypes of a sample's two tensors, without a batch dimension."""

    x_shape: tuple[int, ...]
    x_dtype: torch.dtype
    y_shape: tuple[int, ...]
    y_dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Form":
        """The form of one sample."""
        return cls(tuple(x.shape), x.dtype, tuple(y.shape), y.dtype)

    def __str__(self) -> str:
        x, y = f"x {list(self.x_shape)} {self.x_dtype}", f"y {list(self.y_shape)} {self.y_dtype}"
        return f"{x}, {y}".replace("torch.", "")


@dataclass(frozen=True)
class TensorSamples:
    """All samples in memory: x [N, ...] and y [N, ...]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Pair:
        return self.x[index], self.y[index]

    def gather(self, keys: Sequence[Key], form: Form) -> Pair:
        """A batch; nothing is random in it."""
        indices = torch.tensor([index for index, _ in keys])
        return self.x[indices], self.y[indices]


@dataclass(frozen=True)
class ItemSamples:
    """Samples of a map-style data set, converted when they are read."""

    items: Any
    """Has `__len__`, and `__getitem__` that gives (x, y), or a dict with two such columns."""
    columns: tuple[str, str] | None = None
    """Of x and y, in a dict."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Pair:
        item = self.items[index]
        if self.columns is not None:
            item = tuple(item[name] for name in self.columns)
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UserError(
                f"a sample must be a pair (x, y): got {describe(item)} from index {index}; return"
                f" two values"
            )
        return as_input(item[0]), as_target(item[1])

    def gather(self, keys: Sequence[Key], form: Form) -> Pair:
        """A batch, each sample of it read with its own seed."""
        pairs = []
        with generators_kept():
            for index, seed in keys:
                seed_generators(seed)
                pairs.append(self[index])
                if (own := Form.of(*pairs[-1])) != form:
                    raise different(form, own, f"sample {index}")
        xs, ys = zip(*pairs, strict=True)
        return torch.stack(xs), torch.stack(ys)


@dataclass(frozen=True)
class CollatedSamples:
    """Samples of a map-style data set that a user's own function makes batches of."""

    items: Any
    collate: Collate

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Pair:
        x, y = self._collated([self.items[index]])
        return x[0], y[0]

    def gather(self, keys: Sequence[Key], form: Form) -> Pair:
        """A batch, each item of it read with its own seed, collated with the first one's."""
        items = []
        with generators_kept():
            for index, seed in keys:
                seed_generators(seed)
                items.append(self.items[index])
            seed_generators(derive(keys[0][1], "collate"))
            x, y = self._collated(items)
        if (own := Form.of(x[0], y[0])) != form:
            raise different(form, own, f"the batch with sample {keys[0][0]}")
        return x, y

    def _collated(self, items: list[Any]) -> Pair:
        made = self.collate(items)
        if isinstance(made, (tuple, list)) and len(made) == 2:
            x, y = as_input(made[0]), as_target(made[1])
            if x.ndim and y.ndim and len(x) == len(y) == len(items):
                return x, y
        raise UserError(
            f"collate_fn must give (x, y) with one entry per sample each: got {describe(made)} for"
            f" {len(items)} samples; return two tensors"
        )


def as_input(value: object) -> Tensor:
    """A tensor of a number, numbers, an array or a PIL image; only an image's dtype changes.

    Raises:
        UserError: it is nothing of the kind, or an image of which nobody knows which value is
            white.
    """
    if isinstance(value, Image.Image):
        from torchvision.transforms.v2 import functional as F  # takes seconds to import

        image: Tensor = F.to_dtype(F.to_image(_levels(value)), torch.float32, scale=True)
        return image.as_subclass(Tensor)
    return _as_tensor(value)


def _levels(image: Image.Image) -> Image.Image | np.ndarray[Any, np.dtype[np.uint16]]:
    """What shows the colours of an image: not their numbers in its palette."""
    if image.mode in ("P", "PA"):
        transparent = image.mode == "PA" or "transparency" in image.info
        return image.convert("RGBA" if transparent else "RGB")
    if has_16_bits(image):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        raise UserError(
            f"an image must have pixels of 8 or 16 bits: got 32 in mode {image.mode}; return an"
            f" array of numbers in the range that the model takes"
        )
    return image


def as_target(value: object) -> Tensor:
    """The same of a target: int64 of whole numbers or a mask, float32 of booleans."""
    target = _as_tensor(np.array(value) if isinstance(value, Image.Image) else value)
    if target.dtype == torch.bool:
        return target.float()
    return target if target.is_floating_point() else target.long()


def _as_tensor(value: object) -> Tensor:
    try:
        with warnings.catch_warnings():
            # An array that may not be written, such as a mapped file: batches are copies of it.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.as_tensor(value).cpu()  # batches are pinned, and sent to any rank
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"a sample must be a pair of tensors, arrays, numbers or images: got"
            f" {describe(value)}; convert it in the data set"
        ) from None


def describe(value: object) -> str:
    """The type of a value, and how many are in it."""
    inside = f" of {len(value)}" if isinstance(value, (tuple, list, dict)) else ""
    return f"{type(value).__name__}{inside}"


def different(wanted: Form, got: Form, where: str) -> UserError:
    """The error for a sample, or a batch of them, unlike the first one."""
    return UserError(
        f"all samples must have one shape and dtype: got {got} for {where}, and {wanted} for the"
        f" first; crop, pad or convert them in the data set"
    )
