"""python experiments/shrink.py FOLDER OUTPUT SIDE: an image folder with smaller images, as PNGs."""

import sys
from pathlib import Path

from PIL import Image


def shrink(source: Path, target: Path, side: int) -> None:
    """Write every image of `source` (split/class/name) to `target`, box-filtered to side x side."""
    for path in sorted(source.glob("*/*/*")):
        small = target / path.relative_to(source).with_suffix(".png")
        small.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("RGB").resize((side, side), Image.Resampling.BOX).save(small)


if __name__ == "__main__":
    shrink(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
