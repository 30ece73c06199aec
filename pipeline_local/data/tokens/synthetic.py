"""`data.name=synthetic_tokens`: ids computed on the fly, for plans and measurements."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline_local.config import Positive
from pipeline_local.data.info import Split
from pipeline_local.data.tokens.entry import TokenEntry
from pipeline_local.data.tokens.opening import Options, TokenSplit
from pipeline_local.data.tokens.shards import TokenStream

NUM_SEQUENCES = {"train": 4096, "test": 64}


@dataclass(frozen=True)
class _Noise(TokenStream):
    """Ids without any meaning; integer arithmetic only, so every machine computes the same."""

    vocabulary: int = 1
    count: int = 0

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """As of any stream."""
        place = np.arange(start, min(stop, self.count), dtype=np.uint64)
        mixed = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # modulo 2**64
        found: npt.NDArray[np.int64] = (
            (mixed >> np.uint64(33)) % np.uint64(self.vocabulary)
        ).astype(np.int64)
        return found


class _Entry(TokenEntry):
    """The entry of `DATA`."""

    __module__ = __name__
    needs_root = reads_root = False

    def __call__(  # type: ignore[override]
        self,
        root: None,
        split: str,
        *,
        sequence_length: Positive,
        vocabulary: Positive = 50257,
        augment: Literal["none"] = "none",
        mixup: Literal[0] = 0,
        image_size: None = None,
        on_error: Literal["fail"] = "fail",
    ) -> Any:  # noqa: ANN401
        """A split.

        Args:
            root: none.
            split: train or test.
            sequence_length: tokens that the network sees at once.
            vocabulary: number of different ids.
            augment, mixup, image_size, on_error: of images alone.
        """
        count = NUM_SEQUENCES[split] * sequence_length + 1
        return TokenSplit(_Noise((), vocabulary, count), vocabulary)

    def open(self, root: None, split: Split, options: Options) -> TokenSplit:  # type: ignore[override]
        """As of any entry for tokens."""
        assert options.vocabulary is not None, "it has a default"
        found: TokenSplit = self(
            None,
            split,
            sequence_length=options.sequence_length,
            vocabulary=options.vocabulary,
        )
        return found


ENTRY = _Entry()
