"""Train on Parquet files with the columns `image` and `label`, as the Hugging Face hub has them.

Run it as `python examples/parquet_folder.py [FOLDER]`. It needs `pip install pyarrow`.
"""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits

from pipeline_local import load_config, train

CONFIG = """
model: {name: resnet20, width: 8}
modules: {count: 2}
data: {name: parquet, image_size: 8, batch_size: 32}
train: {steps: 20}
"""


def png(pixels: np.ndarray) -> dict[str, bytes | None]:
    Image.fromarray((pixels * 15).astype("uint8")).save(file := io.BytesIO(), "png")
    return {"bytes": file.getvalue(), "path": None}


folder, digits = Path((*sys.argv[1:], "runs/parquet")[0]), load_digits()
for split, part in (("train", slice(600)), ("test", slice(600, 800))):
    (folder / split).mkdir(parents=True)
    images = [png(pixels) for pixels in digits.images[part]]
    table = pyarrow.table({"image": images, "label": digits.target[part]})
    parquet.write_table(table, folder / split / "data-0.parquet")
(file := folder / "digits.yaml").write_text(CONFIG)
config = load_config(file, [f"data.root={folder}", f"run.dir={folder / 'run'}"])
print(f"accuracy of each head: {train(config)['accuracy']}")
