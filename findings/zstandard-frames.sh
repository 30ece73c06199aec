#!/usr/bin/env bash
# zstandard 0.25.0: `read_to_iter` stops after the first frame of a file and gives no error, while `stream_reader`,
# `copy_stream` and `open` of the same package read on. `decompress` and `decompressobj` stop there too.
# `cat a.jsonl.zst b.jsonl.zst > all.jsonl.zst` and pzstd write files of several frames, which the format allows.
# `stream_reader` reads on although its option `read_across_frames` is False: that ends one `readinto`, not the file.
# Guess before running: all ways of one package to read a file give the same bytes, or an error.
# Seen 2026-11-28, Python 3.11: two files of 1000 lines in one give 2000 lines, and 1000 by `read_to_iter`.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check zstandard==0.25.0

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io
from pathlib import Path

import zstandard

path = Path("all.jsonl.zst")
for start in (0, 1000):
    lines = b"".join(b'{"n": %d}\n' % n for n in range(start, start + 1000))
    with path.open("ab") as file:
        file.write(zstandard.ZstdCompressor().compress(lines))


def copied() -> bytes:
    target = io.BytesIO()
    with path.open("rb") as file:
        zstandard.ZstdDecompressor().copy_stream(file, target)
    return target.getvalue()


ways = {
    "open": lambda: zstandard.open(path, "rb").read(),
    "stream_reader": lambda: zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read(),
    "copy_stream": copied,
    "read_to_iter": lambda: b"".join(zstandard.ZstdDecompressor().read_to_iter(path.open("rb"))),
    "decompress": lambda: zstandard.ZstdDecompressor().decompress(path.read_bytes()),
    "decompressobj": lambda: zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()),
}
seen = {name: read().count(b"\n") for name, read in ways.items()}
print(f"zstandard {zstandard.__version__}, lines read of 2000: {seen}")
assert list(seen.values()) == [2000, 2000, 2000, 1000, 1000, 1000], "the behaviour has changed"
PYTHON
