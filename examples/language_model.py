"""A language model: a configuration from a file, with keys of its own; then it continues a text.

Run it as `python examples/language_model.py [RUN_FOLDER]`.
"""

import sys
from pathlib import Path

from pipeline_local import Generator, load_config, train

root = Path(__file__).parent.parent
run = (*sys.argv[1:], "runs/language-model")[0]
keys = [f"data.root={root}/configs/prose", "train.tokens=20000", f"run.dir={run}"]
summary = train(load_config(root / "configs/lm-tiny.yaml", keys))
print(f"bits per byte of each head: {summary['bits_per_byte']}")
print("It is a truth", *Generator(run).text("It is a truth", tokens=40), sep="")
