"""Batches of sequences: what a run sees of its tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline_local.config import DataConfig
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import check_again, describe, open_data, passed_over
from pipeline_local.data.info import DataInfo
from pipeline_local.data.skipped import Skipped
from pipeline_local.data.tokens.command import TokenizeOptions, tokenize
from pipeline_local.data.tokens.entry import tokenizer_of
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.text.tokenizer import ByteTokenizer, train
from tests.prose import prose

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
LENGTH = 8


@pytest.fixture
def numbers(tmp_path):
    """Ids that are their own places: 61 to train on, 21 to test on."""
    np.arange(61, dtype=np.uint16).tofile(tmp_path / "train.bin")
    np.arange(21, dtype=np.uint16).tofile(tmp_path / "val.bin")
    return tmp_path


def settings(root, batch_size=3, **args):
    own = {key: args.pop(key) for key in ("limit", "workers") if key in args}
    options = {"sequence_length": LENGTH, **args}
    return DataConfig("tokens", root=root, batch_size=batch_size, args=options, **own)


def training(data, info, start, steps, seed=0):
    return list(open_data(data).train_batches(info, seed, start, steps, Skipped()))


def test_facts(numbers):
    info = describe(settings(numbers, vocabulary=100))
    assert (info.num_train, info.num_test) == (7, 3), "60 / 8, and 20 / 8 with a part"
    assert (info.sample_shape, info.label_shape, info.dtype) == ((8,), (8,), "int64")
    assert info.num_classes == 100
    assert (info.tokenizer, info.end_token, info.bytes_per_token) == (None, None, None)
    assert [line.split()[0] for line in info.files] == ["train.bin"]
    assert DataInfo.from_json(info.to_json()) == info


def test_facts_of_texts(texts):
    info = describe(settings(texts, tokenizer="bytes"))
    assert (info.num_classes, info.end_token) == (257, 256)
    assert info.tokenizer == ByteTokenizer().digest
    ids = (texts / "test" / "c.txt").stat().st_size
    assert info.bytes_per_token == (ids - 1) / ids, "the end token is predicted, the first is not"
    limited = describe(settings(texts, tokenizer="bytes", limit=5))
    assert (limited.num_train, limited.num_test) == (5, 5)


def test_bytes_per_token_are_of_what_is_scored(texts):
    for name, text in {"a": "a", "b": "b", "c": prose(30)}.items():
        (texts / "test" / f"{name}.txt").write_text(text)
    info = describe(settings(texts, tokenizer="bytes", limit=3))
    ids, texts_of_them = 3 * LENGTH, 3 * LENGTH - 2
    assert info.bytes_per_token == texts_of_them / ids, "a END b END and so on"
    tokens = settings(tokenize(TokenizeOptions(texts, tokenizer="bytes")), limit=4)
    assert describe(tokens).bytes_per_token is None, "nobody has counted them"
    assert describe(replace(tokens, limit=None)).bytes_per_token is not None


def test_an_epoch_has_each_sequence_once_and_its_labels_are_the_next_ids(numbers):
    data = settings(numbers, vocabulary=100)
    info = describe(data)
    batches = training(data, info, 0, 4)
    for x, y in batches:
        assert x.shape == y.shape == (3, LENGTH)
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(y, x + 1)
        assert (x[:, 0] % LENGTH == 0).all()
    for epoch in (batches[:2], batches[2:]):
        first = torch.cat([x[:, 0] for x, _ in epoch]).tolist()
        assert len(set(first)) == 6
    assert not torch.equal(batches[0][0], training(data, info, 0, 1, seed=1)[0][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_a_function_of_its_step(numbers, workers):
    data = settings(numbers, vocabulary=100)
    info = describe(data)
    whole = training(data, info, 0, 7)
    rest = training(settings(numbers, vocabulary=100, workers=workers), info, 5, 2)
    assert all(
        torch.equal(a, b)
        for one, other in zip(whole[5:], rest, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_the_test_split_predicts_every_token_but_the_first(numbers):
    data = settings(numbers, batch_size=2, vocabulary=100)
    info = describe(data)
    (x0, y0), (x1, y1) = open_data(data).test_batches(info, Skipped())
    assert torch.cat([x0, x1])[:2].flatten().tolist() == list(range(16))
    labels = torch.cat([y0, y1]).flatten()
    assert labels[labels >= 0].tolist() == list(range(1, 21))
    assert x1.tolist() == [[16, 17, 18, 19, 20, 0, 0, 0], [0] * 8]
    assert y1.tolist() == [[17, 18, 19, 20, -100, -100, -100, -100], [-100] * 8]
    few = describe(settings(numbers, batch_size=1, vocabulary=100, limit=2))
    assert few.num_test == 2
    assert torch.equal(open_data(data).ready(info, torch.bfloat16, torch.device("cpu"))(x0), x0)


def test_sizes_that_do_not_fit_are_refused(numbers, tmp_path):
    with pytest.raises(
        UserError, match=r"not exceed the 7 training sequences .*=8 in 61 tokens: got 9; lower"
    ):
        describe(settings(numbers, 9, vocabulary=100))
    with pytest.raises(UserError, match=r"the 5 training sequences.* raise data\.limit"):
        describe(settings(numbers, 6, vocabulary=100, limit=5))
    np.arange(1, dtype=np.uint16).tofile(numbers / "val.bin")
    with pytest.raises(UserError, match="must have a token to predict: got 1 token"):
        describe(settings(numbers, vocabulary=100))
    with pytest.raises(UserError, match=r"data\.vocabulary: data\.tokenizer says how large"):
        describe(settings(numbers, vocabulary=100, tokenizer="bytes"))


def test_what_is_of_images_is_refused(numbers):
    tree = {
        "model": {"name": "resnet20"},
        "data": {"name": "tokens", "augment": "trivial", "mixup": 0.1, "on_error": "skip"},
        "train": {"steps": 1},
    }
    with pytest.raises(ConfigError) as caught:
        configfile.parse(tree)
    assert caught.value.problems == [
        "missing key 'data.sequence_length': data.name=tokens needs it; add"
        " data.sequence_length=VALUE",
        "data.augment: should be 'none', got 'trivial'",
        "data.mixup: should be 0, got 0.1",
        "data.on_error: should be 'fail', got 'skip'",
    ]
    with pytest.raises(ConfigError, match=r"data\.root is needed for data\.name=tokens"):
        configfile.parse({**tree, "data": {"name": "tokens", "sequence_length": 8}})
    with pytest.raises(ConfigError, match=r"missing key 'data\.sequence_length'"):
        describe(DataConfig("tokens", root=numbers))


def test_a_tokenizer_is_a_path_unless_it_is_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = {"model": {"name": "resnet20"}, "train": {"steps": 1}}
    data = {"name": "tokens", "root": "r", "sequence_length": 8, "tokenizer": "mine"}
    kept = configfile.tree(configfile.parse({**tree, "data": data}))["data"]
    assert kept["tokenizer"] == str(tmp_path / "mine"), "it means the same in any folder"
    data["tokenizer"] = "bytes"
    assert configfile.tree(configfile.parse({**tree, "data": data}))["data"]["tokenizer"] == "bytes"


def test_other_texts_of_the_same_tokenizer_are_taken_again(texts, tmp_path):
    tokenizer = train([prose(900)], 290)
    tokenizer.save(tmp_path)
    tokens = tokenize(
        TokenizeOptions(texts, tokenizer=tmp_path / "tokenizer.json", output=tmp_path / "t")
    )
    info = describe(settings(tokens))
    other = tmp_path / "other"
    (other / "test").mkdir(parents=True)
    (other / "test" / "x.txt").write_text(prose(77, 6))
    again = check_again(settings(other, tokenizer=tmp_path), info, "test")
    assert again.num_train == info.num_train
    assert again.num_test < info.num_test
    assert again.bytes_per_token != info.bytes_per_token
    with pytest.raises(UserError, match=r"of another tokenizer \(\w{8} of 257 tokens\) than"):
        check_again(settings(other, tokenizer="bytes"), info, "test")
    with pytest.raises(UserError, match=r"sequence_length: got 9, .* trained on 8; leave it out"):
        check_again(settings(tokens, sequence_length=9), info, "test")
    np.arange(21, dtype=np.uint16).tofile(tmp_path / "other" / "test.bin")
    with pytest.raises(UserError, match=r"another tokenizer \(unknown of 290 tokens\)"):
        check_again(settings(other, vocabulary=290), info, "test")
    assert check_again(settings(tokens), info, "train") == info
    ends = settings(texts, tokenizer=tmp_path, end_token="a")
    for refused in (
        lambda: check_again(ends, info, "test"),
        lambda: tokenizer_of(ends, info),
    ):
        with pytest.raises(UserError, match=r"end with the run's, id 0, got id \d+; name that by"):
            refused()


def test_the_tokenizer_of_a_run_is_found_again(texts, numbers, tmp_path):
    mine = train([prose(900)], 290)
    mine.save(tmp_path)
    tokens = tokenize(
        TokenizeOptions(texts, tokenizer=tmp_path / "tokenizer.json", output=tmp_path / "t")
    )
    info = describe(settings(tokens))
    for data in (settings(tokens), settings(texts, tokenizer=tmp_path)):
        assert tokenizer_of(data, info).digest == mine.digest
    with pytest.raises(UserError, match=r"got \w{8} of 257 tokens, and the run .* of 290 tokens"):
        tokenizer_of(settings(texts, tokenizer="bytes"), info)
    with pytest.raises(UserError, match=r"nothing in data\.root=.* says which it is"):
        tokenizer_of(settings(texts, vocabulary=100), info)


def test_a_run_of_numbers_learns_later_of_which_tokenizer_they_are(numbers, tmp_path):
    """For bits per byte, and for texts; its ids must be below the number that was given."""
    info = describe(settings(numbers, vocabulary=300))
    assert info.bytes_per_token is None
    named = settings(numbers, tokenizer="bytes")
    assert check_again(named, info, "test").bytes_per_token == 1
    assert tokenizer_of(named, info).vocabulary == 257
    fewer = describe(settings(numbers, vocabulary=100))
    with pytest.raises(UserError, match=r"\(\w{8} of 257 tokens\) .* \(unknown of 100 tokens\)"):
        check_again(named, fewer, "test")
    with pytest.raises(UserError, match=r"got \w{8} of 257 tokens, and .* unknown of 100 tokens"):
        tokenizer_of(named, fewer)
    with pytest.raises(UserError, match=r"unknown of 300 tokens\) .*; name the run's by data\.tok"):
        check_again(settings(numbers, vocabulary=300), describe(named), "test")


def test_what_is_passed_over_is_said(texts):
    (texts / "train" / "cover.jpg").touch()
    (texts / "test" / "empty.txt").write_text("\n")
    (texts / "train" / "empty.txt").touch()
    assert passed_over(settings(texts, tokenizer="bytes")) == [
        f"1 passed over in data.root={texts}: train: cover.jpg",
        "2 empty documents are passed over",
    ]
