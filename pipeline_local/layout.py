"""The meaning of the axes of activations, and of inputs and labels."""

from typing import Literal

Layout = Literal["NCHW", "NHWC", "NCT", "NTC", "NC"]
"""N samples, C channels, H x W or T positions."""

POSITIONS: dict[Layout, tuple[int, ...]] = {
    "NCHW": (2, 3),
    "NHWC": (1, 2),
    "NCT": (2,),
    "NTC": (1,),
    "NC": (),
}
"""The axes of the positions."""

ImageShape = tuple[int, int, int]
"""Channels, height and width of an image."""

IGNORE_LABEL = -100
"""The integer label of what counts nowhere, such as padding; torch's losses ignore it, too."""
