"""What every rank must know of the data that a run uses."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline_local.errors import UserError

Split = Literal["train", "test"]


@dataclass(frozen=True)
class DataInfo:
    """What every rank must know of the data; only the first stage ever reads the data itself."""

    num_train: int
    num_test: int
    num_classes: int
    sample_shape: tuple[int, ...]
    """Of one sample's input: C, H, W of images."""
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    classes: tuple[str, ...]
    """The name of each label."""
    label_shape: tuple[int, ...] = ()
    """Of one sample's label; () is a number."""
    dtype: str = "float32"
    """Of the network's input, as torch names it: floating point gets the run's precision."""
    tokenizer: str | None = None
    """Digest of what token ids mean; None where there are none, or nobody knows."""
    end_token: int | None = None
    """Id of the token that ends a document, where it is known."""
    bytes_per_token: float | None = None
    """Of the test split's text, in UTF-8, for each token that is predicted."""
    files: tuple[str, ...] = ()
    """Name and digest of each file of token ids or their text, of the training split."""

    def to_json(self) -> str:
        """One line, read back by `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "DataInfo":
        """The inverse of `to_json`.

        Raises:
            UserError: it was not written by that.
        """
        try:
            items = json.loads(text).items()
            facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in items}
            if "image_shape" in facts:  # what earlier runs call it
                facts["sample_shape"] = facts.pop("image_shape")
            return cls(**facts)
        except (ValueError, TypeError, AttributeError):
            raise UserError(
                f"the facts of the data are damaged: got {text[:60]!r}; restore data.json, or"
                f" resume the run, which writes it again"
            ) from None
