"""The meaning of the axes of activations."""

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
