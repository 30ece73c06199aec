#!/usr/bin/env bash
# transformers 5.24.0: `AutoTokenizer.from_pretrained(folder)` drops the normalizer of `tokenizer.json` where
# `tokenizer_config.json` names a class such as GPT2Tokenizer, and gives other ids than `tokenizers` with the same file.
# With Qwen2Tokenizer it also puts the class's own pre-tokenizer in place of the file's. There is no warning.
# Wrapping an own tokenizer in GPT2TokenizerFast, as tutorials do, and saving it writes such a folder.
# With PreTrainedTokenizerFast all is kept.
# Guess before running: `tokenizer.json` is the whole tokenizer; the class names only methods and special tokens.
# Seen 2026-11-28, Python 3.11: a text has 3 ids with tokenizers and before saving, 11 when loaded as GPT2Tokenizer,
# whose normalizer is None. The number 1999 has 2 ids, and 4 when loaded as Qwen2Tokenizer.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3

cd "$folder"
export HF_HOME="$folder" HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1
"$folder/venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.normalizer = normalizers.NFKC()  # makes one character, the ligature, the two letters f and i
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
tokenizer.train_from_iterator(["the final file 1999"] * 50, trainer)
text, number = "the \ufb01nal \ufb01le", "1999"


def counts(encode) -> tuple[int, int]:
    return len(encode(text)), len(encode(number))


seen = {"tokenizers": counts(lambda t: tokenizer.encode(t).ids)}
for name in ("PreTrainedTokenizerFast", "GPT2TokenizerFast", "Qwen2TokenizerFast"):
    wrapped = getattr(transformers, name)(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    seen[f"{name}, before saving"] = counts(wrapped.encode)
    wrapped.save_pretrained(name)
    assert json.loads(Path(name, "tokenizer.json").read_text())["normalizer"] == {"type": "NFKC"}
    again = transformers.AutoTokenizer.from_pretrained(name)
    seen[f"{name}, saved and loaded"] = counts(again.encode)
    print(f"{name} is loaded as {type(again).__name__}, normalizer {again.backend_tokenizer.normalizer}")
print(f"transformers {transformers.__version__}, ids of {text!r} and of {number!r}:")
for name, pair in seen.items():
    print(f"    {name}: {pair[0]} and {pair[1]}")
assert list(seen.values()) == [(3, 2)] * 4 + [(11, 2), (3, 2), (11, 4)], "the behaviour has changed"
PYTHON
