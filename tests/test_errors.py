"""How messages are put into words."""

import pytest

from pipeline_local.errors import counted, did_you_mean, few, first_line, type_and_line


@pytest.mark.parametrize(
    ("number", "nouns", "words"),
    [
        (0, ("step",), "0 steps"),
        (1, ("step",), "1 step"),
        (2, ("step",), "2 steps"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
    ],
)
def test_a_number_and_its_noun(number, nouns, words):
    assert counted(number, *nouns) == words


def test_the_first_of_many():
    assert few(["a", "b"]) == "a, b"
    assert few(["a", "b", "c"], most=1) == "a and 2 more"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("resnet21", "; did you mean 'resnet20'?"),
        ("resnt32", "; did you mean 'resnet32'?"),
        ("llama", ""),
    ],
)
def test_the_nearest_name(word, hint):
    assert did_you_mean(word, ["resnet20", "resnet32", "vit"]) == hint
    assert did_you_mean(word, []) == ""


@pytest.mark.parametrize(
    ("error", "first", "typed"),
    [
        (ValueError("one\ntwo"), "one", "ValueError: one"),
        (ValueError("\n  one\n"), "one", "ValueError: one"),
        (ValueError(), "ValueError", "ValueError"),
        (ValueError("\n"), "ValueError", "ValueError"),
    ],
)
def test_the_first_line_of_an_error(error, first, typed):
    assert first_line(error) == first
    assert type_and_line(error) == typed
