"""Penn Treebank words equal those of NLTK's tokenizer; ends of sentences."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diptych.data.tokenizers.ptb import sentences, words

MARKS = [*"'\".,:;!?()[]{}<>-`@#$%&*/_“”‘’«»„—–‒―\t\n", "''", "``", "--", "...", "..", "\u00a0", "\u2003", " ", "  "]
CLITICS = ["n't", "'s", "'ll", "'ve", "'re", "'d", "'m", "'em", "'go", "'S", "N'T", "'tis", "'twas"]
CONTRACTED = ["cannot", "gonna", "wanna", "gotta", "gimme", "lemme", "d'ye", "more'n", "Cannot"]
PLAIN = [*"abd1é北_İ", "dogs", "mr", "u.s", "etc", "3.5"]
TEXTS = st.lists(st.sampled_from([*MARKS, *CLITICS, *CONTRACTED, *PLAIN]), max_size=14).map("".join)
SEPARATORS = "".join(
    map(chr, range(0x1C, 0x20))
)  # white space to `re` and our tokenizer, but not to the package that NLTK uses


@pytest.fixture(scope="module")
def nltk_words() -> Callable[[str], list[str]]:
    from nltk.tokenize import NLTKWordTokenizer  # here, since it takes more than a second

    return NLTKWordTokenizer().tokenize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog , two cats .", ["a", "dog", ",", "two", "cats", "."]),
        ("A dog isn't here.", ["A", "dog", "is", "n't", "here", "."]),
        ("it's the dogs' ball, they've run", ["it", "'s", "the", "dogs", "'", "ball", ",", "they", "'ve", "run"]),
        ('a sign says "stop!"', ["a", "sign", "says", "``", "stop", "!", "''"]),
        ('"hi" (he said) ...', ["``", "hi", "''", "(", "he", "said", ")", "..."]),
        ("it cost $3.50 at 10:30, no--yes", ["it", "cost", "$", "3.50", "at", "10:30", ",", "no", "--", "yes"]),
        ("one ends. another", ["one", "ends", ".", "another"]),
        ("mr. x in the u.s. army of st. paul.", ["mr.", "x", "in", "the", "u.s.", "army", "of", "st.", "paul", "."]),
        ("i cannot, gonna 'go'", ["i", "can", "not", ",", "gon", "na", "'", "go", "'"]),
        ("t-shirt & #1 o'clock", ["t-shirt", "&", "#", "1", "o'clock"]),
        ("she's' ok", ["she", "'s", "'", "ok"]),
        ("\u201ccurly\u201d \u2018x\u2019 a\u2014b", ["\u201c", "curly", "\u201d", "\u2018", "x", "\u2019", "a", "\u2014", "b"]),
        ("a dog.)", ["a", "dog", ".", ")"]),
        ("", []),
        (" . .. '' \" ' ", [".", "..", "``", "``", "'"]),
    ],
)  # fmt: skip
def test_known_words(text: str, expected: list[str]):
    assert words(text) == expected


@pytest.mark.slow
def test_time_is_linear_in_the_length():
    """A backtracking pattern would take hours."""
    for text in (". " * 3000, "'" * 50_000, '."' * 3000, "a." * 20_000, '``"' * 3000, "a. " * 3000):
        began = time.process_time()
        assert len("".join(words(text))) >= len(text.replace(" ", "")) and time.process_time() - began < 60


@pytest.mark.slow
@given(TEXTS | st.text(st.characters(exclude_characters=SEPARATORS, exclude_categories=["Cs"]), max_size=40))
@example("```")
@example('""a')
@example("she's' ok, dog'd' ")
@example("::a gonna'tis'twas.)")
@settings(max_examples=400)
def test_words_of_each_sentence_are_nltks(nltk_words: Callable[[str], list[str]], text: str):
    """Only the ends of sentences are determined in another way."""
    assert words(text) == [word for sentence in sentences(text) for word in nltk_words(sentence)]


@given(TEXTS)
def test_sentences_joined_are_the_text_without_spaces(text: str):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two", ["One.", "Two"]),
        ('He said "go." Then.\tHe (went.) ', ['He said "go."', "Then.", "He (went.)"]),
        ("at 5 p.m. on st. george st. j. s. bach, etc. ok.", ["at 5 p.m. on st. george st. j. s. bach, etc. ok."]),
        ("wait ... what.. now", ["wait ... what.. now"]),
        ("3.5 a.b", ["3.5 a.b"]),
        ("", []),
        (" \n", []),
    ],
)
def test_a_full_stop_ends_a_sentence_unless_it_belongs_to_its_word(text: str, expected: list[str]):
    assert list(sentences(text)) == expected


@pytest.mark.slow
@pytest.mark.skipif("DIPTYCH_DATA" not in os.environ, reason="needs Flickr8k in $DIPTYCH_DATA")
def test_words_of_flickr8k_are_nltks(nltk_words: Callable[[str], list[str]]):
    """Every seventh caption as one sentence, since nearly all have one sentence."""
    images = json.loads((Path(os.environ["DIPTYCH_DATA"]) / "flickr8k" / "dataset_flickr8k.json").read_text())["images"]
    captions = [sentence["raw"] for image in images for sentence in image["sentences"]]
    some = captions[::7]
    several = [caption for caption in some if len(list(sentences(caption))) > 1]
    assert len(some) == 5000 and len(several) < 100
    assert all(words(caption) == nltk_words(caption) for caption in set(some) - set(several))
