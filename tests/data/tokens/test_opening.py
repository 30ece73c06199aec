"""What a folder may hold, and what is refused of it."""

import json

import numpy as np
import pytest

from pipeline_local.data.tokens.command import TokenizeOptions, tokenize
from pipeline_local.data.tokens.opening import Options, open_split
from pipeline_local.errors import UserError
from pipeline_local.text.tokenizer import ByteTokenizer, FileTokenizer, open_tokenizer, train
from tests.data.tokens.test_shards import llm_c, megatron
from tests.prose import prose

OPTIONS = Options(sequence_length=16)
BYTES = Options(sequence_length=16, tokenizer="bytes")


@pytest.fixture
def tokens(texts):
    return tokenize(TokenizeOptions(texts, tokenizer="bytes"))


def ids_of(split):
    return split.stream.read(0, len(split.stream)).tolist()


def test_texts_become_tokens_once(texts, tmp_path):
    found = open_split(texts, "train", BYTES)
    expected = [*prose(300).encode(), 256, *prose(200, 3).encode(), 256]
    assert ids_of(found) == expected
    assert (found.vocabulary, found.end_token) == (257, 256)
    assert found.tokenizer == ByteTokenizer().digest
    assert found.bytes_per_token == (len(expected) - 3) / (len(expected) - 1)
    assert [line.split()[0] for line in found.files] == ["train/a.txt", "train/b.txt"]
    (kept,) = (tmp_path / "cache" / "pipeline_local" / "tokens").iterdir()
    stamp = (kept / "train.bin").stat().st_mtime_ns
    assert ids_of(open_split(texts, "train", BYTES)) == expected
    moved = texts.rename(tmp_path / "elsewhere")
    assert open_split(moved, "train", BYTES).files == found.files
    assert (kept / "train.bin").stat().st_mtime_ns == stamp, "it has not been written again"
    (moved / "train" / "a.txt").write_text("other")
    changed = open_split(moved, "train", BYTES)
    assert ids_of(changed) == [*b"other", 256, *prose(200, 3).encode(), 256]
    assert changed.files[0] != found.files[0]
    assert changed.files[1] == found.files[1]


def test_both_splits_may_have_the_same_text(texts):
    (texts / "train" / "b.txt").unlink()
    (texts / "test" / "c.txt").write_text(prose(300))
    train, test = (open_split(texts, split, BYTES) for split in ("train", "test"))
    assert ids_of(train) == ids_of(test) == [*prose(300).encode(), 256]


def test_texts_need_a_tokenizer(texts):
    with pytest.raises(UserError, match=r"data\.tokenizer is needed.*tokenize .*texts --vocab"):
        open_split(texts, "train", OPTIONS)


def test_what_tokenize_writes_needs_no_key(tokens):
    found = open_split(tokens, "test", OPTIONS)
    assert ids_of(found) == [*prose(120, 5).encode(), 256]
    assert found.bytes == len(prose(120, 5))
    assert open_split(tokens, "test", BYTES) == found


@pytest.mark.parametrize("known", [True, False])
def test_the_bytes_of_the_first_token_are_not_predicted(texts, tmp_path, monkeypatch, known):
    """Of bytes there is one per token: what ends a document stands for none."""
    tokenizer = train([prose(900)], 290)
    tokenizer.save(tmp_path)
    named = Options(16, tokenizer=tmp_path)
    lengths = tokenizer.byte_lengths()
    folder = tokenize(TokenizeOptions(texts, tokenizer=tmp_path, output=tmp_path / "t"))
    if not known:
        monkeypatch.setattr(FileTokenizer, "byte_lengths", lambda self: None)
    for root, options in ((texts, named), (folder, OPTIONS), (folder, named)):
        found = open_split(root, "test", options)
        predicted = ids_of(found)[1:]
        assert found.bytes_per_token == lengths[predicted].sum() / len(predicted)
    (folder / "tokenizer.json").unlink()
    without = open_split(folder, "test", OPTIONS)
    assert without.bytes_per_token == len(prose(120, 5)) / len(predicted), "nobody can be asked"


def test_token_files_of_another_tokenizer_are_refused(tokens, tmp_path):
    train([prose(500)], 270).save(tmp_path)
    options = Options(16, tokenizer=tmp_path)
    with pytest.raises(UserError, match=r"is not the tokenizer of .*texts-bytes; leave it out"):
        open_split(tokens, "train", options)
    with pytest.raises(UserError, match=r"documents of .*-bytes end with id 256, got a with id 97"):
        open_split(tokens, "train", Options(16, end_token="a"))
    with pytest.raises(UserError, match=r"texts-bytes has one of 257, got 300; leave it out"):
        open_split(tokens, "train", Options(16, vocabulary=300))


def test_damage_to_what_tokenize_has_written_is_named(tokens):
    path, facts = tokens / "train.bin", tokens / "tokens.json"
    content, text = path.read_bytes(), facts.read_text()
    path.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"train\.bin with \d+ bytes, and tokens\.json says"):
        open_split(tokens, "train", OPTIONS)
    path.write_bytes(b"\xff\xff" + content[2:])
    with pytest.raises(UserError, match=r"must be 0 to 256.*: got \d+ to 65535 in .*train\.bin"):
        open_split(tokens, "train", OPTIONS)
    path.unlink()
    with pytest.raises(UserError, match=r"train\.bin \(No such file"):
        open_split(tokens, "train", OPTIONS)
    for broken in (
        "{",
        "[]",
        text.replace('"format": 1', '"format": 9'),
        text.replace("empty", "x"),
    ):
        facts.write_text(broken)
        with pytest.raises(UserError, match=r"tokens\.json cannot be read"):
            open_split(tokens, "train", OPTIONS)
    facts.write_text(
        json.dumps({**json.loads(text), "splits": {"test": json.loads(text)["splits"]["test"]}})
    )
    with pytest.raises(UserError, match=r"has no train split: got .*, with test"):
        open_split(tokens, "train", OPTIONS)


def nano_gpt(path, ids, dtype=np.uint16):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.array(ids, dtype).tofile(path)
    return path


def test_token_files_of_others(tmp_path):
    nano_gpt(tmp_path / "train.bin", [1, 2, 3])
    nano_gpt(tmp_path / "val.bin", [4, 300])
    options = Options(2, vocabulary=301)
    assert ids_of(open_split(tmp_path, "train", options)) == [1, 2, 3]
    found = open_split(tmp_path, "test", options)
    assert ids_of(found) == [4, 300]
    assert (found.vocabulary, found.tokenizer, found.bytes_per_token) == (301, None, None)
    with pytest.raises(UserError, match=r"data\.vocabulary is needed, as .*val\.bin .* up to 300"):
        open_split(tmp_path, "test", OPTIONS)
    with pytest.raises(UserError, match=r"must be 0 to 299, .*: got 4 to 300 in .*val\.bin"):
        open_split(tmp_path, "test", Options(2, vocabulary=300))


def test_shards_are_one_stream_and_an_index_is_not_passed_over(tmp_path):
    (tmp_path / "train").mkdir()
    llm_c(tmp_path / "train" / "x_000001.bin", [3, 4])
    megatron(tmp_path / "train" / "x_000000.bin", [[1], [2]])
    (tmp_path / "train" / "notes.md").touch()
    found = open_split(tmp_path, "train", Options(2, vocabulary=9))
    assert ids_of(found) == [1, 2, 3, 4]
    assert found.passed_over == ("notes.md",)


def test_where_others_have_an_index_a_file_without_one_is_refused(tmp_path):
    """Its ids would be read as nanoGPT's, of two bytes each."""
    options = Options(2, vocabulary=9)
    (tmp_path / "train").mkdir()
    megatron(tmp_path / "train" / "x.bin", [[1], [2]], "<i4", 4)
    megatron(tmp_path / "val.bin", [[3, 4]], "<i4", 4).with_suffix(".idx").unlink()
    with pytest.raises(UserError, match=r"val\.bin \(val\.idx is not beside it, and others have"):
        open_split(tmp_path, "test", options)
    llm_c(tmp_path / "val.bin", [3, 4])
    assert ids_of(open_split(tmp_path, "test", options)) == [3, 4], "its header says what it is"


def test_a_tokenizer_says_which_ids_there_may_be(tmp_path):
    nano_gpt(tmp_path / "train.bin", [255, 256])
    found = open_split(tmp_path, "train", BYTES)
    assert (found.vocabulary, found.end_token) == (257, 256)
    assert found.tokenizer == ByteTokenizer().digest
    nano_gpt(tmp_path / "val.bin", [1, 256, 2])
    assert open_split(tmp_path, "test", BYTES).bytes_per_token == 1 / 2, "one byte, two predictions"
    nano_gpt(tmp_path / "train.bin", [255, 257])
    with pytest.raises(UserError, match=r"must be 0 to 256, .*got 255 to 257"):
        open_split(tmp_path, "train", BYTES)


def test_ids_that_a_writer_has_wrapped_are_refused(tmp_path):
    """Megatron's writer keeps 70000 as 4464 where its dtype has two bytes, without a word."""
    (tmp_path / "tokenizer").mkdir()
    ByteTokenizer().save(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    facts = json.loads(path.read_text())
    facts["model"]["vocab"]["far"] = 70000
    path.write_text(json.dumps(facts))
    assert open_tokenizer(path).vocabulary == 70001
    wrapped = np.array([1, 70000]).astype("<u2").tolist()
    megatron(tmp_path / "train.bin", [wrapped])
    assert wrapped == [1, 4464]
    with pytest.raises(UserError, match=r"up to 70000, .*train\.bin of uint16, .* wrapped"):
        open_split(tmp_path, "train", Options(2, tokenizer=path))
    megatron(tmp_path / "train.bin", [[1, 70000]], "<i4", 4)
    assert ids_of(open_split(tmp_path, "train", Options(2, tokenizer=path))) == [1, 70000]
    megatron(tmp_path / "train.bin", [[1, -5]], "<i4", 4)
    with pytest.raises(UserError, match="got -5 to 1"):
        open_split(tmp_path, "train", Options(2, tokenizer=path))


def test_a_folder_without_texts_or_tokens_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no \.txt, \.jsonl, .* files of the train split"):
        open_split(tmp_path, "train", BYTES)
    with pytest.raises(UserError, match=r"data.root is not a folder"):
        open_split(tmp_path / "none", "train", BYTES)
