"""Train on WebDataset shards: tar files whose members `KEY.png` and `KEY.cls` are one sample.

Run it as `python examples/webdataset_folder.py [FOLDER]`.
"""

import io
import sys
import tarfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from pipeline_local import load_config, train

CONFIG = """
model: {name: resnet20, width: 8}
modules: {count: 2}
data: {name: webdataset, image_size: 8, batch_size: 32}
train: {steps: 20}
"""


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    (member := tarfile.TarInfo(name)).size = len(content)
    shard.addfile(member, io.BytesIO(content))


folder, digits = Path((*sys.argv[1:], "runs/webdataset")[0]), load_digits()
folder.mkdir(parents=True)
for k, name in enumerate(("train-000000", "train-000001", "train-000002", "test-000000")):
    with tarfile.open(folder / f"{name}.tar", "w") as shard:
        for index in range(200 * k, 200 * k + 200):
            image = Image.fromarray((digits.images[index] * 15).astype("uint8"))
            image.save(png := io.BytesIO(), "png")
            add(shard, f"{index:06d}.png", png.getvalue())
            add(shard, f"{index:06d}.cls", b"%d" % digits.target[index])
(file := folder / "digits.yaml").write_text(CONFIG)
config = load_config(file, [f"data.root={folder}", f"run.dir={folder / 'run'}"])
print(f"accuracy of each head: {train(config)['accuracy']}")
