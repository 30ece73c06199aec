"""Documents as people have them: plain, as JSON lines, compressed, in parquet, and damaged."""

import gzip
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from pipeline_local.errors import UserError
from pipeline_local.text import documents
from pipeline_local.text.tokenizer import train
from tests.prose import prose

DOCUMENTS = ["first", "", "zweite Zeile\nmit Ümläuten", "third 世界"]


def read(path, field="text"):
    """The documents of a file, put together from their pieces."""
    found, parts = [], []
    for piece in documents.pieces(path, field):
        assert piece.starts == (not parts)
        parts.append(piece.text)
        if piece.ends:
            found.append("".join(parts))
            parts = []
    assert not parts
    return found


def lines(documents=DOCUMENTS, field="text"):
    return "".join(json.dumps({"id": 1, field: text}) + "\n" for text in documents).encode()


def refusal(path, field="text"):
    with pytest.raises(UserError) as caught:
        read(path, field)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_text_file_is_one_document_without_its_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo".encode())
    assert read(path) == ["one\r\ntwo"]
    path.write_text("")
    assert [piece.is_blank for piece in documents.pieces(path, "")] == [True]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".JSONL.GZ"])
def test_json_lines_plain_and_compressed(tmp_path, suffix):
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(
        suffix[-3:].strip(".").lower(), bytes
    )
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pack(lines()))
    assert read(path) == DOCUMENTS
    path.write_bytes(pack(lines(field="content")[:-1]))  # without a last line break
    assert read(path, "content") == DOCUMENTS


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_several_streams_in_one_file_are_all_read(tmp_path, pack):
    path = tmp_path / f"a.jsonl.{'gz' if pack is gzip.compress else 'zst'}"
    path.write_bytes(pack(lines()) + pack(lines(["more"])))
    assert read(path) == [*DOCUMENTS, "more"]


@pytest.mark.parametrize("chunk", [100, 2**20])
def test_padding_behind_gzip_is_none_of_it(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(documents, "_CHUNK", chunk)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines()) + bytes(512) + gzip.compress(lines(["more"])))
    assert read(path) == [*DOCUMENTS, "more"]
    path.write_bytes(gzip.compress(lines()) + bytes(512))
    assert read(path) == DOCUMENTS


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"id": [1, 2, 3, 4, 5], "text": [*DOCUMENTS, None]})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    assert read(path) == [*DOCUMENTS, ""]
    assert "data.field names no column: got 'content'" in refusal(path, "content")
    assert "its columns are id, text" in refusal(path, "content")
    assert "'id' must be text, got 1 in row 0" in refusal(path, "id")


def test_long_documents_come_in_pieces_that_words_do_not_cross(tmp_path, monkeypatch):
    text = prose(3000)
    whole = train([text], 300)
    monkeypatch.setattr(documents, "PIECE", 1200)
    monkeypatch.setattr(documents, "_CHUNK", 999)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.jsonl").write_bytes(lines([text]))
    for name in ("a.txt", "a.jsonl"):
        parts = [piece.text for piece in documents.pieces(tmp_path / name, "text")]
        assert len(parts) > 5
        assert max(map(len, parts)) <= 1200
        assert "".join(parts) == text
        ids = [i for part in whole.encode(parts) for i in part.tolist()]
        assert ids == whole.encode([text])[0].tolist()


def test_a_document_without_any_word_break_is_cut_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE", 100)
    (tmp_path / "a.txt").write_text("x" * 1050)
    assert read(tmp_path / "a.txt") == ["x" * 1050]


@pytest.mark.parametrize("chunk", [1, 4, 10, 2**20])
def test_no_utf8_is_named_with_its_byte(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(documents, "_CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes("Zoë and ".encode() + b"\xff\xfe")
    assert f"no UTF-8: got byte 9 of {path}; convert it" in refusal(path)
    path.write_bytes("Zoë".encode()[:-1])
    assert f"got byte 2 of {path}" in refusal(path)


def test_mistakes_in_json_lines_are_named_with_their_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"body": "b"}\n')
    assert f"line 3 of {path} has no 'text', got body" in refusal(path)
    path.write_bytes(b'{"text": "a"}\n{"text": "b"\n')
    assert f"no JSON: got line 2 of {path}" in refusal(path)
    path.write_bytes(b"[" * 100_000)
    assert f"no JSON: got line 1 of {path} (maximum recursion depth" in refusal(path)
    path.write_bytes(b'{"text": 7}\n')
    assert f"'text' must be text, got 7 in line 1 of {path}" in refusal(path)
    path.write_bytes(b'["text"]\n')
    assert f"line 1 of {path} has no 'text', got ['text']" in refusal(path)
    path.write_bytes(b'{"text": "\xff"}\n')
    assert f"no UTF-8: got byte 10 of line 1 of {path}" in refusal(path)
    path.write_bytes(b'{"text": "ok"}\n{"text": "a\\ud800"}\n')
    assert f"half a character ('\\ud800') in line 2 of {path}" in refusal(path)


def test_damaged_files_are_named(tmp_path):
    """zstandard's own reader ends without a word where a stream is cut off."""
    text = lines([prose(500)])
    for name, content in {
        "cut.jsonl.gz": gzip.compress(text)[:-20],
        "cut.jsonl.zst": zstandard.compress(text)[:-20],
        "no.jsonl.gz": b"no such thing",
        "zeros.jsonl.gz": bytes(512),
        "no.jsonl.zst": b"no such thing",
        "no.parquet": b"no such thing",
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert refusal(path).startswith(f"a text cannot be read: got {path} (")


@pytest.mark.parametrize(
    ("module", "name"), [("zstandard", "a.jsonl.zst"), ("pyarrow", "a.parquet")]
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, module, name):
    (tmp_path / name).write_bytes(b"something")
    monkeypatch.setitem(sys.modules, module, None)
    line = refusal(tmp_path / name)
    assert f"needs {module}, which is not installed" in line
    assert 'pip install "pipeline-local[lm]"' in line
