"""Train on a Hugging Face data set: its columns `image` and `label` are found by their names.

Run it as `python examples/huggingface.py [RUN_FOLDER]`. It needs `pip install datasets`.
"""

import sys

from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
from sklearn.datasets import load_digits
from torch import nn

from pipeline_local import fit

digits = load_digits()
pictures = [Pictures.fromarray((pixels * 15).astype("uint8")) for pixels in digits.images]
rows = {"image": pictures, "label": digits.target}  # yours: datasets.load_dataset(...)
features = Features({"image": Image(), "label": Value("int64")})
split = Dataset.from_dict(rows, features=features).train_test_split(300, seed=0)
blocks = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
last = nn.Sequential(nn.Flatten(), nn.Linear(16 * 8 * 8, 10))
summary = fit(
    nn.Sequential(*blocks, last),
    split["train"],
    split["test"],
    modules=2,
    epochs=2,
    lr=0.03,
    batch_size=64,
    run_dir=(*sys.argv[1:], None)[0],
)
print(f"accuracy of each head: {summary['accuracy']}")
