#!/usr/bin/env bash
# transformers 5.24.0: `AutoTokenizer.from_pretrained(folder).save_pretrained(other)` writes another `tokenizer.json`
# than it has read, where that has no post-processor (as `tokenizers` writes it by default): an empty template stands
# there afterwards. The ids are the same, the file's hash is not. Whoever knows a tokenizer by its file's hash takes the
# saved copy for another one; hash the vocabulary and some ids, or the file after one such round.
# Guess before running: loading and saving without a change gives the same file.
# Seen 2026-11-28, Python 3.11: `"post_processor": null` becomes a TemplateProcessing; a second round changes nothing.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3

cd "$folder"
export HF_HOME="$folder" HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1
"$folder/venv/bin/python" - <<'PYTHON'
import hashlib
import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
text = "the cat sat on the mat"
trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<|endoftext|>"], show_progress=False)
tokenizer.train_from_iterator([text] * 50, trainer)
folders = [Path("first"), Path("second"), Path("third")]
folders[0].mkdir()
tokenizer.save(str(folders[0] / "tokenizer.json"))
(folders[0] / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
for source, target in zip(folders, folders[1:]):
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(target)

files = [(folder / "tokenizer.json").read_bytes() for folder in folders]
first, second = json.loads(files[0]), json.loads(files[1])
changed = [key for key in first if first[key] != second[key]]
ids = {tuple(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids) for folder in folders}
print(f"transformers {transformers.__version__}: hashes {[hashlib.sha256(file).hexdigest()[:8] for file in files]}")
for key in changed:
    print(f"    {key}: {first[key]} became {second[key]}")
print(f"    different ids: {len(ids) > 1}")
assert changed == ["post_processor"] and first["post_processor"] is None, "the behaviour has changed"
assert files[1] == files[2] and len(ids) == 1, "the behaviour has changed"
PYTHON
