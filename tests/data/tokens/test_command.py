"""`pipeline-local tokenize`, as it is called."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline_local import cli
from pipeline_local.data.tokens import command
from pipeline_local.data.tokens.opening import Options, open_split
from pipeline_local.text import writing
from pipeline_local.text.tokenizer import ByteTokenizer, open_tokenizer, train
from tests.prose import prose


def run(*arguments):
    return cli.main(["tokenize", *map(str, arguments)])


def test_a_tokenizer_is_trained_once_and_kept(texts, capsys):
    assert run(texts, "--vocabulary", 280) == 0
    output = texts.with_name("texts-280")
    names = {path.name for path in output.iterdir()}
    assert names == {
        "train.bin",
        "test.bin",
        "tokens.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tokenizer = open_tokenizer(output)
    assert tokenizer.digest == train([prose(300), prose(200, 3)], 280).digest
    found = open_split(output, "train", Options(8))
    ids = found.stream.read(0, len(found.stream)).tolist()
    documents = [prose(300), prose(200, 3)]
    assert ids == [i for e in tokenizer.encode(documents) for i in (*e.tolist(), 0)]
    said = capsys.readouterr().out
    assert "training a tokenizer of 280 tokens on 0.0 MB" in said
    assert f"test: {len(open_split(output, 'test', Options(8)).stream)} tokens of 0.0 MB" in said
    assert f"train with data.name=tokens data.root={output} data.sequence_length=N" in said
    assert run(texts, "--vocabulary", 280) == 2
    assert "texts-280 exists, and files are never overwritten" in capsys.readouterr().err


def test_a_given_tokenizer_stays_as_it_is(texts, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    train([prose(50)], 270).save(folder)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "a", "more": 1}')
    assert run(texts, "--tokenizer", folder / "tokenizer.json") == 0
    output = tmp_path / "texts-mine"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (output / name).read_bytes() == (folder / name).read_bytes()
    assert open_tokenizer(output).end_token == open_tokenizer(folder, "a").end_token
    assert run(texts, "--tokenizer", folder, "--output", tmp_path / "b", "--end", "b") == 0
    ids = np.fromfile(tmp_path / "b" / "test.bin", np.uint16)
    assert ids[-1] == open_tokenizer(folder, "b").end_token
    assert ids[-1] == open_tokenizer(tmp_path / "b").end_token, "the copy says so"
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())["more"] == 1


def test_bytes_and_another_field(tmp_path):
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "test.jsonl").write_text(json.dumps({"body": "né"}) + "\n")
    assert run(tmp_path / "lines", "--tokenizer", "bytes", "--field", "body") == 0
    ids = np.fromfile(tmp_path / "lines-bytes" / "test.bin", np.uint16).tolist()
    assert ids == [*"né".encode(), 256], "one split alone will do, to evaluate on"
    assert open_tokenizer(tmp_path / "lines-bytes").digest == ByteTokenizer().digest


def test_the_output_lies_beside_the_data_however_they_are_named(texts, tmp_path, monkeypatch):
    monkeypatch.chdir(texts / "train")
    ByteTokenizer().save(texts / "train")
    assert command.TokenizeOptions(Path(".."), 280).folder == tmp_path / "texts-280"
    assert command.TokenizeOptions(Path(".."), tokenizer=Path()).folder == tmp_path / "texts-train"
    assert command.TokenizeOptions(Path(), tokenizer=Path("..")).folder == texts / "train-texts"
    (tmp_path / "link").symlink_to(texts)
    assert command.TokenizeOptions(tmp_path / "link", 280).folder == tmp_path / "link-280"


def test_what_is_passed_over_is_named(texts, capsys):
    """A text with an ending that nobody reads would be missed otherwise."""
    (texts / "train" / "notes.md").write_text(prose(9))
    (texts / "test" / "more.txt.gz").touch()
    assert run(texts, "--tokenizer", "bytes") == 0
    said = capsys.readouterr().out
    assert f"2 passed over in DATA={texts}: train: notes.md, test: more.txt.gz" in said


def test_an_interrupted_command_goes_on(texts, monkeypatch, capsys):
    run(texts, "--vocabulary", 280, "--output", texts.with_name("whole"))
    real, output = writing.write_split, texts.with_name("out")

    def stop(folder, split, *rest):
        if split == "test":
            raise KeyboardInterrupt
        return real(folder, split, *rest)

    monkeypatch.setattr(command, "write_split", stop)
    arguments = (texts, "--vocabulary", 280, "--output", output)
    assert run(*arguments) == 130
    assert not output.exists()
    monkeypatch.setattr(command, "write_split", real)
    monkeypatch.setattr(command, "train", lambda *_: pytest.fail("it has been trained"))
    capsys.readouterr()
    assert run(texts, "--vocabulary", 281, "--output", output) == 2
    assert "out.partial was begun from other texts or with other" in capsys.readouterr().err
    assert run(*arguments) == 0
    assert not output.with_name("out.partial").exists()
    for path in texts.with_name("whole").iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes(), path.name


def test_mistakes_are_one_line(texts, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, line in {
        (texts, "--vocabulary", "256"): "--vocabulary: at least 257, for 256 bytes and the end",
        (tmp_path / "none", "--tokenizer", "bytes"): "DATA is not a folder: got",
        (tmp_path / "empty", "--tokenizer", "bytes"): "files of the train split: got",
        (texts, "--tokenizer", tmp_path / "no.json"): "error: --tokenizer: ",
        (texts, "--tokenizer", "bytes", "--end", "x"): "--tokenizer: the end token of bytes is",
        (texts, "--vocabulary", "280", "--end", "x"): "--end: the end token of a tokenizer that",
    }.items():
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert line in error
    (texts / "train" / "z.txt").write_bytes(b"ok \xff")
    assert run(texts, "--vocabulary", "280") == 2
    assert "no UTF-8: got byte 3 of" in capsys.readouterr().err
    assert not texts.with_name("texts-280").exists()
    (texts / "train").rename(texts / "other")
    assert run(texts, "--vocabulary", "280") == 2
    assert "files of the train split" in capsys.readouterr().err


def test_a_text_with_few_words_has_few_tokens(texts, capsys):
    assert run(texts, "--vocabulary", 5000) == 0
    assert "the text has only " in capsys.readouterr().out
