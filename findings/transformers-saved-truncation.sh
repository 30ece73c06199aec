#!/usr/bin/env bash
# transformers 5.24.0 with tokenizers 0.23.3: one call with `truncation=True, max_length=..., padding="max_length"`
# changes what `save_pretrained` writes: `tokenizer.json` then holds that truncation and padding.
# `Tokenizer.from_file(...).encode(document)` obeys them: it cuts each document, and pads each short one. The rest is
# there in `encoding.overflowing`, which nobody asks who has not asked for a cut. `AutoTokenizer` ignores both.
# So a corpus encoded with the file of a fine-tuned model loses the end of every long document.
# Before encoding: `no_truncation()` and `no_padding()`.
# Guess before running: the arguments of a call hold for that call.
# Seen 2026-11-28, Python 3.11: 600 ids by AutoTokenizer, 16 by Tokenizer.from_file; one id became 16.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3

cd "$folder"
export HF_HOME="$folder" HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1
"$folder/venv/bin/python" - <<'PYTHON'
import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

raw = Tokenizer(models.WordLevel(unk_token="[UNK]"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
raw.train_from_iterator(["the cat sat on the mat"], trainers.WordLevelTrainer(special_tokens=["[UNK]", "[PAD]"]))
short, long = "cat", "the cat sat on the mat " * 100


def saved(name: str) -> tuple[int, int, int]:
    fast.save_pretrained(name)
    read = Tokenizer.from_file(f"{name}/tokenizer.json")
    document = read.encode(long)
    auto = transformers.AutoTokenizer.from_pretrained(name)
    assert len(auto(long)["input_ids"]) == 600 and len(auto(short)["input_ids"]) == 1
    assert len(document) + sum(len(piece.ids) - piece.attention_mask.count(0) for piece in document.overflowing) == 600
    return len(document.ids), len(document.overflowing), len(read.encode(short).ids)


fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")
before = saved("before")
fast(short, truncation=True, max_length=16, padding="max_length")
after = saved("after")
print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, Tokenizer.from_file:")
for name, (ids, rest, padded) in (("before", before), ("after", after)):
    print(f"    saved {name} the call: {ids} ids of 600, {rest} pieces in `overflowing`; one word has {padded} ids")
assert (before, after) == ((600, 0, 1), (16, 37, 16)), "the behaviour has changed"
PYTHON
