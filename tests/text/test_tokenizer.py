"""Ids mean the same whoever reads the tokenizer's files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from pipeline_local.errors import UserError
from pipeline_local.text.tokenizer import (
    END,
    ByteTokenizer,
    FileTokenizer,
    open_tokenizer,
    train,
)
from tests.prose import prose

TEXT = "Hé llo\n\n世界's  end\t\x00 <|endoftext|>"


@pytest.fixture(scope="module")
def trained():
    return train([prose(2000)], 290)


def test_bytes_are_their_own_ids():
    found = ByteTokenizer()
    (ids,) = found.encode([TEXT])
    assert bytes(ids[:-1].tolist()) == TEXT.removesuffix(END).encode()
    assert (found.vocabulary, found.end_token, ids[-1]) == (257, 256, 256)
    assert found.decode(ids.tolist()) == TEXT.removesuffix(END)
    assert found.encode(["", f"a{END}{END}b"])[1].tolist() == [97, 256, 256, 98]
    assert [len(each) for each in found.encode(["", END])] == [0, 1]
    assert found.decode([0xE4, 65]) == "\ufffdA"


def test_the_file_of_bytes_gives_the_same_ids(tmp_path):
    ByteTokenizer().save(tmp_path)
    found = open_tokenizer(tmp_path)
    assert isinstance(found, FileTokenizer)
    assert (found.vocabulary, found.end_token) == (257, 256)
    assert found.digest == ByteTokenizer().digest
    text = f"{END}{TEXT}c<|end{END}oftext|>" + "".join(map(chr, range(0x3FF)))
    assert found.encode([text])[0].tolist() == ByteTokenizer().encode([text])[0].tolist()
    assert found.decode(found.encode([text])[0].tolist()) == text.replace(END, "")


def test_training_is_repeatable_and_knows_every_byte(trained):
    again = train(iter([prose(2000)]), 290)
    assert again.digest == trained.digest
    assert again.content == trained.content
    assert trained.vocabulary == 290
    (ids,) = trained.encode([TEXT.replace(END, "")])
    assert trained.decode(ids.tolist()) == TEXT.replace(END, "")
    assert max(trained.encode([prose(50)])[0]) >= 257, "words have ids of their own"
    assert train([prose(2000)], 280).digest != trained.digest


def test_another_process_makes_the_same_tokenizer(trained):
    """Whatever order its sets and dictionaries of strings have."""
    code = (
        "from pipeline_local.text.tokenizer import train; from tests.prose import prose;"
        " print(train([prose(2000)], 290).digest)"
    )
    root = Path(__file__).parent.parent.parent
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", code]
        printed = subprocess.check_output(command, env=environment, cwd=root, text=True)
        assert printed.strip() == trained.digest


def test_a_digest_is_that_of_the_ids_alone(trained, tmp_path):
    """transformers writes other post-processors, and whatever truncation was last used."""
    facts = json.loads(trained.content)
    facts["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    facts["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    found = open_tokenizer(tmp_path / "tokenizer.json")
    assert found.digest == trained.digest
    text = prose(40)
    assert len(found.encode([text, "a"])[0]) > 3, "nothing is cut off"
    assert found.encode([text])[0].tolist() == trained.encode([text])[0].tolist()
    facts["model"]["merges"] = facts["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    assert open_tokenizer(tmp_path).digest != trained.digest


def test_saved_and_opened_it_is_the_same(trained, tmp_path):
    trained.save(tmp_path)
    found = open_tokenizer(tmp_path)
    assert (found.digest, found.end_token) == (trained.digest, trained.end_token)
    assert isinstance(found, FileTokenizer)
    (tmp_path / "again").mkdir()
    found.save(tmp_path / "again")
    names = ("tokenizer.json", "tokenizer_config.json")
    assert all((tmp_path / "again" / n).read_bytes() == (tmp_path / n).read_bytes() for n in names)


def test_the_bytes_of_each_id_are_those_of_its_text(trained):
    text = TEXT.replace(END, "") + prose(60)
    for tokenizer in (trained, ByteTokenizer()):
        lengths = tokenizer.byte_lengths()
        (ids,) = tokenizer.encode([text])
        assert lengths[ids].sum() == len(text.encode())
        assert lengths[tokenizer.end_token] == 0


def words(tmp_path, *special):
    """A tokenizer of whole words, as a folder."""
    vocab = {word: i for i, word in enumerate(["a", "b", *special])}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="a"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.add_special_tokens(list(special))
    library.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_the_end_token_is_what_the_folder_says(tmp_path):
    folder = words(tmp_path, "</s>", "<stop>")
    assert open_tokenizer(folder).end_token == 2, "a usual one"
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<stop>"}}')
    assert open_tokenizer(folder).end_token == 3
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert open_tokenizer(folder / "tokenizer.json").end_token == 2
    assert open_tokenizer(folder, "b").end_token == 1
    assert open_tokenizer(folder).byte_lengths() is None
    with pytest.raises(UserError, match=r"got none of nope among its tokens; .* data\.end_token"):
        open_tokenizer(folder, "nope")


def test_a_copy_with_another_end_token_says_so_in_each_file(tmp_path):
    from transformers import AutoTokenizer

    folder, copy = words(tmp_path, "</s>", "<stop>"), tmp_path / "copy"
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    special = folder / "special_tokens_map.json"
    special.write_text('{"eos_token": {"content": "</s>"}, "pad_token": "a"}')
    copy.mkdir()
    open_tokenizer(folder, "<stop>").save(copy)
    found = AutoTokenizer.from_pretrained(copy)
    assert (found.eos_token, found.pad_token) == ("<stop>", "a")
    for name in ("tokenizer_config.json", special.name):
        assert json.loads((copy / name).read_text())["eos_token"] == "<stop>"
    special.write_text("{")
    with pytest.raises(UserError, match=r"special_tokens_map\.json is damaged"):
        open_tokenizer(folder, "<stop>")


def test_bytes_have_one_end_token():
    assert open_tokenizer("bytes", END) == ByteTokenizer()
    with pytest.raises(UserError, match=r"end token of bytes is .*, got x; leave data\.end_token"):
        open_tokenizer("bytes", "x")


def test_ids_may_have_gaps(tmp_path):
    facts = json.loads((words(tmp_path, "</s>") / "tokenizer.json").read_text())
    facts["model"]["vocab"]["far"] = 90
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    assert open_tokenizer(tmp_path).vocabulary == 91


def test_what_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer.json cannot be read .*save_pretrained"):
        open_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"nowhere cannot be read"):
        open_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text('{"some": "thing"}')
    with pytest.raises(UserError, match=r"tokenizer.json is no tokenizer.json \("):
        open_tokenizer(tmp_path)
    folder = words(tmp_path)
    with pytest.raises(UserError, match=r"end token of .* is not known"):
        open_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config.json is damaged"):
        open_tokenizer(folder)


def test_without_the_library_bytes_go_on(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r'needs tokenizers.*pip install "pipeline-local\[lm\]"'):
        open_tokenizer(tmp_path)
    assert open_tokenizer("bytes").encode(["a"])[0].tolist() == [97]
    open_tokenizer("bytes").save(tmp_path)
