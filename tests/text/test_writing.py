"""What is interrupted goes on where it was, and ends in the same bytes."""

import json

import numpy as np
import pytest

from pipeline_local.errors import UserError
from pipeline_local.text import documents, writing
from pipeline_local.text.tokenizer import ByteTokenizer, train
from pipeline_local.text.writing import SplitFacts, Texts, dtype_for, write_split
from tests.prose import prose

BYTES = ByteTokenizer()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Many pieces, batches and notes."""
    monkeypatch.setattr(documents, "PIECE", 200)
    monkeypatch.setattr(writing, "_BATCH", 250)
    monkeypatch.setattr(writing, "_EVERY", 0.0)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.txt").write_text(prose(200))
    (tmp_path / "b.txt").write_text(" \n")
    documents = [prose(90, 1), "", "short", prose(150, 2)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    (tmp_path / "d.txt").write_text("last")
    return Texts(tuple(sorted(tmp_path.iterdir())), "text")


def write(folder, files, tokenizer=BYTES, told=lambda _: None):
    folder.mkdir(exist_ok=True)
    facts = write_split(folder, "train", files, tokenizer, told)
    return facts, np.fromfile(folder / "train.bin", dtype_for(tokenizer))


def test_documents_end_with_the_end_token(tmp_path, files):
    positions = []
    facts, ids = write(tmp_path / "out", files, told=positions.append)
    documents = [prose(200), prose(90, 1), "short", prose(150, 2), "last"]
    expected = [i for text in documents for i in (*text.encode(), 256)]
    assert ids.tolist() == expected
    assert facts == SplitFacts(len(expected), len(expected) - 5, documents=5, empty=2)
    assert positions == sorted(positions)
    assert positions[-1] == files.bytes
    assert len(positions) > 4


class Breaks(ByteTokenizer):
    """Is killed in its n-th batch."""

    def __init__(self, after):
        super().__init__()
        object.__setattr__(self, "left", [after])

    def encode(self, texts):
        self.left[0] -= 1
        if self.left[0] < 0:
            raise KeyboardInterrupt
        return super().encode(texts)


def test_an_interrupted_split_goes_on_at_every_batch(tmp_path, files):
    whole = write(tmp_path / "whole", files)
    calls = Breaks(100)
    write(tmp_path / "counted", files, calls)
    batches = 100 - calls.left[0]
    assert batches > 4
    for after in range(batches):
        folder = tmp_path / f"cut{after}"
        with pytest.raises(KeyboardInterrupt):
            write(folder, files, Breaks(after))
        with (folder / "train.bin").open("ab") as file:
            file.write(b"more than was noted")
        rest = Breaks(100)
        facts, ids = write(folder, files, rest)
        assert (facts, ids.tolist()) == (whole[0], whole[1].tolist())
        assert 100 - rest.left[0] == batches - after, "nothing is encoded twice"
        finished = Breaks(1)
        assert write(folder, files, finished)[0] == facts


def test_ids_that_two_bytes_do_not_hold_get_four(tmp_path, files):
    class Large(ByteTokenizer):
        vocabulary = 2**16 + 1
        end_token = 2**16

    assert dtype_for(ByteTokenizer()) == "uint16"
    _, ids = write(tmp_path / "out", files, Large())
    assert ids.dtype == np.uint32
    assert ids.max() == 2**16


def test_the_facts_say_what_is_there(tmp_path, files):
    tokenizer = train([prose(500)], 270)
    facts, _ = write(tmp_path / "out", files, tokenizer)
    writing.write_facts(tmp_path / "out", tokenizer, {"train": facts})
    stored = json.loads((tmp_path / "out" / "tokens.json").read_text())
    assert stored["splits"]["train"]["documents"] == 5
    assert {**stored, "splits": None} == {
        "format": 1,
        "tokenizer": tokenizer.digest,
        "vocabulary": 270,
        "end_token": 0,
        "dtype": "uint16",
        "splits": None,
    }


def test_nothing_but_empty_documents_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("\n \n")
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n{"text": null}\n')
    files = Texts((tmp_path / "a.txt", tmp_path / "b.jsonl"), "text")
    with pytest.raises(
        UserError, match=r"train split has no text: all 3 documents in .* are empty"
    ):
        write(tmp_path / "out", files)


def test_what_a_tokenizer_cannot_encode_is_one_line(tmp_path, files):
    class Fails(ByteTokenizer):
        def encode(self, texts):
            raise Exception("WordLevel error: Missing [UNK] token")

    with pytest.raises(UserError, match=r"cannot encode a text \(WordLevel error"):
        write(tmp_path / "out", files, Fails())
