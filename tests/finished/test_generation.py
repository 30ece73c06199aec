"""Generated text is what the modules' own logits say, from any head."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers
import torch

from pipeline_local import Generator, cli
from pipeline_local.configfile import configfile
from pipeline_local.errors import UserError
from pipeline_local.finished.exporting.export import export
from pipeline_local.finished.finished import load
from pipeline_local.finished.predictor import Predictor
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.text.tokenizer import ByteTokenizer, FileTokenizer
from pipeline_local.training.train import train

TEXT = "the cat sat on the mat and the dog lay by the door. " * 40


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on bytes, with a readout that has a block of its own."""
    folder = tmp_path_factory.mktemp("language")
    with pytest.MonkeyPatch.context() as context:
        context.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield made(folder)


def made(folder, sections=None, **data):
    for split in ("train", "test"):
        (folder / split).mkdir()
        (folder / split / "cat.txt").write_text(TEXT)
    model = {
        "name": "causal_lm",
        "architecture": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 2,
    }
    tree = {
        "model": {**model, "intermediate_size": 32, "num_attention_heads": 2},
        "data": {"name": "tokens", "root": str(folder), "tokenizer": "bytes", "batch_size": 8}
        | {"sequence_length": 16, **data},
        "task": {"name": "next_token"},
        "modules": {"count": 2},
        "head": {"name": "readout", "depth": 1, "refresh": 3},
        "optimizer": {"name": "adamw", "lr": 0.02},
        "train": {"steps": 30},
        "parallel": {"threads": 1},
        "run": {"dir": str(folder / "run")},
        **(sections or {}),
    }
    train(configfile.parse(tree), RankInfo())
    return folder / "run"


def test_a_tokenizer_that_has_moved_is_named(run, tmp_path, capsys):
    """By a key of the data, for text and for an export."""
    ByteTokenizer().save(tmp_path)
    output = ["--output", str(tmp_path / "out")]
    assert cli.main(["export", str(run), f"data.tokenizer={tmp_path / 'none'}", *output]) == 2
    assert "none cannot be read" in capsys.readouterr().err
    assert cli.main(["export", str(run), "train.seed=1", *output]) == 2
    assert "train.seed: cannot be changed for a run that is trained" in capsys.readouterr().err
    assert cli.main(["export", str(run), f"data.tokenizer={tmp_path}", *output]) == 0
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    said = []
    for overrides in ([], [f"data.tokenizer={tmp_path}"]):
        speaker = Generator(run, overrides=overrides)
        said.append("".join(speaker.text("the cat", 8, temperature=0)))
    assert said[0] == said[1] != ""


def by_hand(run, ids, head):
    """The logits of the last token, by a pass through the modules."""
    _, modules, _ = load(run)
    x = torch.tensor([ids])
    with torch.no_grad():
        for module in modules[:head]:
            x = module.eval().body(x)
        return modules[head - 1].head(x)[:, -1]


def test_the_tokenizer_is_exported_with_the_model(run, tmp_path):
    from transformers import AutoTokenizer

    export(run, tmp_path / "out")
    found = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    text = "the dog lay by thé dog"
    assert found(text, add_special_tokens=False)["input_ids"] == list(text.encode())


def test_what_is_exported_stops_where_a_document_ends(run, tmp_path):
    """As `generate` does, though a configuration by arguments names no end token."""
    from transformers import AutoModelForCausalLM

    export(run, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    model.get_output_embeddings().register_forward_hook(lambda *_: torch.eye(257)[None, 256:])
    assert model.generate(torch.tensor([[256, 97]]), max_new_tokens=5).tolist() == [[256, 97, 256]]


def test_a_tokenizer_that_is_named_later_is_exported(tmp_path):
    """That of token files of others, which do not say it."""
    for split in ("train", "test"):
        ids = np.frombuffer(TEXT.encode(), np.uint8).astype(np.uint16)
        ids.tofile(tmp_path / f"{split}.bin")
    made(tmp_path, tokenizer=None, vocabulary=300)
    export(tmp_path / "run", tmp_path / "plain")
    assert not (tmp_path / "plain" / "tokenizer.json").exists()
    export(tmp_path / "run", tmp_path / "out", overrides=["data.tokenizer=bytes"])
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    facts = [json.loads((tmp_path / out / "config.json").read_text()) for out in ("plain", "out")]
    assert [each["eos_token_id"] for each in facts] == [None, 256]


@pytest.mark.parametrize("head", [1, 2])
def test_the_most_probable_token_follows(run, head):
    speaker = Generator(run, exit=head)
    ids = [256, *b"the dog"]
    assert speaker.tokenizer.end_token == 256
    expected = list(ids)
    for _ in range(12):
        logits = by_hand(run, expected[-16:], head)
        torch.testing.assert_close(speaker.logits(torch.tensor([expected])), logits)
        expected.append(int(logits.argmax()))
    text = "".join(speaker.text("the dog", tokens=12, temperature=0))
    assert text == bytes(expected[len(ids) :]).decode()


@pytest.mark.parametrize("exit", [1, 2])
def test_a_network_in_bfloat16_speaks(tmp_path, monkeypatch, exit):
    """As its evaluation hears it, with heads whose norm gives bfloat16 or float32."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = {"name": "causal_lm", "architecture": "olmo2", "hidden_size": 16}
    model |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    folder = made(tmp_path, {"model": model, "precision": "bfloat16", "train": {"steps": 2}})
    ids = torch.tensor([[256, *b"the dog"]])
    speaker = Generator(folder, exit=exit)
    x, labels = ids, torch.randint(256, ids.shape)
    for module in speaker._modules:
        x, judged, _ = module.eval().evaluate(x, labels=labels)
    found = speaker.logits(ids)[0].log_softmax(0)[labels[0, -1]]
    torch.testing.assert_close(found, judged[0, -1, 0].float(), rtol=1e-2, atol=1e-2)


def test_a_small_temperature_takes_the_most_probable_token(run):
    speaker = Generator(run)
    text = "".join(speaker.text("the dog", tokens=8, temperature=0))
    assert "".join(speaker.text("the dog", tokens=8, temperature=1e-40)) == text


def test_a_seed_draws_the_same_text(run):
    speaker = Generator(run)
    texts = ["".join(speaker.text("the", 12, seed=seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_a_text_may_begin_with_nothing(run):
    assert isinstance("".join(Generator(run).text("", 4)), str)


def test_it_ends_with_the_document(run, monkeypatch):
    speaker = Generator(run)
    monkeypatch.setattr(Generator, "logits", lambda self, ids: torch.eye(257)[256:] * 1e4)
    assert list(speaker.text("the cat", 50)) == []


def test_a_character_comes_whole(run, monkeypatch):
    """Of several bytes: not piece by piece."""
    speaker = Generator(run)
    coming = iter("é!".encode())
    monkeypatch.setattr(Generator, "logits", lambda self, ids: torch.eye(257)[[next(coming)]] * 1e4)
    assert list(speaker.text("", 3)) == ["é", "!"]


def test_a_character_that_is_never_finished(run, monkeypatch):
    """What has been drawn is shown, also where the last character lacks bytes."""
    speaker = Generator(run)
    coming = iter([*b"a", 0xC3])
    monkeypatch.setattr(Generator, "logits", lambda self, ids: torch.eye(257)[[next(coming)]] * 1e4)
    assert list(speaker.text("", 2)) == ["a", "\N{REPLACEMENT CHARACTER}"]


def test_a_word_behind_the_prompt_keeps_its_space(run, monkeypatch):
    """Of a tokenizer that marks where words begin, and strips the mark that begins a text."""
    words = {"\N{LOWER ONE EIGHTH BLOCK}the": 0, "\N{LOWER ONE EIGHTH BLOCK}cat": 1, "</s>": 2}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "</s>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    library.decoder = tokenizers.decoders.Metaspace()
    speaker = Generator(run)
    speaker.tokenizer = FileTokenizer(library.to_str().encode(), "</s>")
    monkeypatch.setattr(Generator, "logits", lambda self, ids: torch.eye(3)[[1]] * 1e4)
    assert list(speaker.text("the", 2)) == [" cat", " cat"]
    assert list(speaker.text("", 2)) == ["cat", " cat"]


def test_nothing_is_compiled_for_each_length_of_a_text(run, tmp_path):
    """Of a run with compile=true: it would take a minute for each token."""
    folder = shutil.copytree(run, tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    assert "\ncompile: false\n" in text
    (folder / "config.yaml").write_text(text.replace("\ncompile: false\n", "\ncompile: true\n"))
    layers = [layer for module in Generator(folder)._modules for layer in module.modules()]
    assert all(layer._compiled_call_impl is None for layer in layers)


def test_what_cannot_be_generated_is_one_line(run, capsys):
    with pytest.raises(UserError, match=r"--exit: must be a module from 1 to 2, got 3"):
        Generator(run, exit=3)
    with pytest.raises(UserError, match="use Generator"):
        Predictor(run)
    for flag, value in [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--tokens", "0"),
        ("--seed", str(2**70)),
    ]:
        assert cli.main(["generate", str(run), flag, value]) == 2
        assert f"{flag} must be at least" in capsys.readouterr().err
    assert cli.main(["generate", str(run), "--prompt", "the \udcff"]) == 2
    assert "--prompt: is no UTF-8 at character 5" in capsys.readouterr().err
    assert cli.main(["generate", str(run / "nowhere")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_the_command_prints_prompt_and_text(run, capsys):
    arguments = ["--prompt", "the", "--tokens", "8", "--temperature", "0"]
    assert cli.main(["generate", str(run), *arguments]) == 0
    text = "".join(Generator(run).text("the", 8, temperature=0))
    assert capsys.readouterr().out == f"the{text}\n"
