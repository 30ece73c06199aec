#!/usr/bin/env bash
# tokenizers 0.23.3: training a WordPiece tokenizer twice on the same corpus gives two tokenizers. Most tokens have
# other ids, and some tokens are others. There is no seed to set. What one has encoded, the other cannot read.
# Unigram's scores differ in the last digits, and so do the ids of tokens with equal scores and the file's hash.
# BPE gives the same file each time.
# So keep the file of a trained tokenizer with what was encoded; training it again does not bring it back.
# Guess before running: training only counts, and has no randomness, so the result is the same.
# Seen 2026-11-28, Python 3.11, five trainings: BPE 1 file; WordPiece 5 files, 4 or 5 sets of tokens; Unigram 5, 1 set.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check tokenizers==0.23.3

cd "$folder"
cat > train.py <<'PYTHON'
import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

lines = [f"line {i * 7919 % 1000} of the small corpus says that {i * 31 % 97} birds sang" for i in range(500)]
options = dict(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
trained = {}
for model, trainer in (
    (models.BPE(unk_token="[UNK]"), trainers.BpeTrainer(**options)),
    (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(**options)),
    (models.Unigram(), trainers.UnigramTrainer(**options, unk_token="[UNK]")),
):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(lines, trainer)
    trained[type(model).__name__] = [tokenizer.to_str(), tokenizer.get_vocab()]
print(json.dumps(trained))
PYTHON
for _ in 1 2 3 4 5; do "$folder/venv/bin/python" train.py; done > runs
"$folder/venv/bin/python" - <<'PYTHON'
import json

import tokenizers

with open("runs") as file:
    runs = [json.loads(line) for line in file]
print(f"tokenizers {tokenizers.__version__}, {len(runs)} trainings on the same lines:")
files = {name: len({run[name][0] for run in runs}) for name in runs[0]}
for name, number in files.items():
    one, other = runs[0][name][1], runs[1][name][1]
    moved = sum(one[token] != other.get(token) for token in one)
    sets = len({frozenset(run[name][1]) for run in runs})
    print(f"    {name}: files {number}, sets of tokens {sets}; the second has other ids for {moved} of {len(one)}")
assert files["BPE"] == 1 and files["WordPiece"] > 1 and files["Unigram"] > 1, "the behaviour has changed"
PYTHON
