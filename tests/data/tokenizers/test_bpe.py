"""CLIP's byte-pair encoding: the ids of open_clip 3.3.0 and of transformers, and word starts."""

from __future__ import annotations

import html
import json
import pickle
from collections.abc import Callable

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.tokenizers.tokenizer import BERT, CLIP, SCENES, SIZES, Tokenizer, bundled, vocabulary

KNOWN = vocabulary(CLIP)
BEGIN, END = 49406, 49407
tokenizer = Tokenizer(77, KNOWN)

# the output of open_clip.tokenizer.SimpleTokenizer().encode, with ftfy 6.3.1 and regex
OFFICIAL = {
    "Hello, World!": [3306, 267, 1002, 256],
    "": [],
    " \t\n ": [],
    "it's he'll I'd we've THEY'RE don't 'tis I'm": [585, 568, 797, 1342, 328, 1896, 649, 1200, 889, 982, 847, 713, 713, 533, 328, 880],
    "A na\u00efve caf\u00e9 owner's \u00fcber-dog": [320, 1097, 35689, 563, 15304, 5019, 568, 6522, 1516, 268, 1929],
    "\u5317\u4eac is far \U0001f389\U0001f389": [161, 234, 245, 21078, 361, 533, 2384, 13450],
    "3.50\u20ac \u2014 \u201cquoted\u201d\u2026 \u2018single\u2019\t\x00 tab\r\nmore": [274, 269, 276, 271, 6309, 2005, 257, 27706, 33993, 568, 17005, 262, 14724, 750],
    "fish &amp; chips &lt;b&gt; &amp;amp; &quot;q&quot; &#39;s &nbsp;x": [2759, 261, 8855, 283, 321, 285, 261, 257, 336, 257, 568, 343],
    "<b>bold &amp; x</b>": [283, 321, 285, 8911, 261, 343, 34308, 321, 285],
    "\ufb01ne \ufb02ow \uff26\uff35\uff2c\uff2c\u3000\uff57\uff49\uff44\uff54\uff48 \u0133": [3797, 5608, 1476, 23571, 72, 329],
    "e\u0301 combining": [4166, 23561],
    "a  b\u00a0c\u2003d\u200be": [320, 321, 322, 323, 9844, 324],
    "\u0130stanbul \u03a3\u0391\u03a3 \u1e9e stra\u00dfe": [328, 16384, 11231, 139, 225, 138, 109, 139, 480, 127, 509, 1894, 127, 253, 324],
    "!!! ... ?!": [995, 678, 2835],
    "_under_score_ #tag @you": [318, 1798, 318, 4431, 318, 258, 3640, 287, 592],
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0661\u0662\u0663 \u2167 \u00bd \u00b2": [3124, 101, 48254, 28505, 19389, 27263, 25130, 149, 350, 149, 351, 149, 352, 158, 227, 371, 33613, 41175],
    "caf\u00c3\u00a9 \u00e2\u20ac\u0153hi\u00e2\u20ac\x9d": [15304, 257, 1883, 257],
    "it&#39;s a&#8217;s": [585, 568, 320, 568],
    "L&AMP;AMP;ATILDE;&AMP;SUP3;PEZ": [75, 8891, 10482],
    "\x1b[31mred\x1b[0m wine": [736, 2604],
    "\u02bctis \u2019s \u017fo'\u017f": [713, 533, 568, 129, 123, 334, 6, 129, 379],
    "a\x85b\u2028c \ud800": [320, 959, 321, 322, 39802],
    "\uff76\uff9e \ufdfa \u2460": [3909, 361, 171, 115, 374, 158, 239, 510],
    "a wombat snorkelling": [320, 1087, 6575, 16590, 74, 2220],
    "\u00c7a &eacute;t&eacute; &notanentity; &amp;eacute;": [22711, 3459, 39694, 126, 361, 514, 28455, 282, 4166],
}  # fmt: skip


def test_every_bundled_vocabulary_has_the_size_by_which_it_is_chosen():
    assert {name: vocabulary(name).size for name in (BERT, SCENES, CLIP)} == SIZES
    assert bundled(49408) is KNOWN and (KNOWN.cls, KNOWN.sep, KNOWN.pad) == (BEGIN, END, 0)


@pytest.mark.parametrize("text", OFFICIAL)
def test_ids_are_open_clips(text: str):
    tokens = tokenizer.encode([text])
    assert tokens.ids.tolist() == [[BEGIN, *OFFICIAL[text], END]] and tokens.mask.all()


MOJIBAKE = ["caf\u00c3\u00a9", "\u00e2\u20ac\u2122", "\u00e2\u20ac\u0153", "\u00c3\u00a0 la", "\u00c2\u00a0"]
ENTITIES = ["&amp;", "&amp;amp;", "&lt;", "&#233;", "&eacute", "&AMP;", "&amp;#39;", "&nbsp;"]
TYPOGRAPHY = [*"\u201c\u201d\u2018\u2019\u00b4\u02bc\ufb01\uff26\u0149\u01c6\u3000\u2026\u2014\u00bd"]
CONTROLS = ["\x00", "\x85", "\x1b[0m", "\u2028", "\r\n", "\ufeff", "\u200b", "\xad", "\t"]
WORDS = [*"abE \u00e9\u0130\u00df<>;'!?.,1\u0663", "dogs", "'s", "'LL", "e\u0301", "\u5317\u4eac", "\U0001f389"]
TEXTS = st.lists(st.sampled_from([*MOJIBAKE, *ENTITIES, *TYPOGRAPHY, *CONTROLS, *WORDS]), max_size=14).map("".join)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[int]]:
    """CLIPTokenizer of transformers with our merges, after the cleaning of the official code."""
    folder = tmp_path_factory.mktemp("clip")
    transformers = pytest.importorskip("transformers")
    merges = [line for line in map(" ".join, pairs()) if line]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    ids = {piece: i for i, piece in enumerate(KNOWN.tokens)}
    ids |= {"<|startoftext|>": BEGIN, "<|endoftext|>": END}
    del ids[KNOWN.tokens[BEGIN]], ids[KNOWN.tokens[END]]
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    theirs = transformers.CLIPTokenizer.from_pretrained(str(folder))

    def encode(text: str) -> list[int]:
        cleaned = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        return theirs(cleaned, truncation=True, max_length=77)["input_ids"]

    return encode


@pytest.mark.slow
def test_ids_are_those_of_transformers(reference: Callable[[str], list[int]]):
    texts = ["Two dogs, running!", "caf\u00e9 \u5317\u4eac", "it's 1,000 o'clock...", "word " * 100, "", "  a\t b"]
    for text in texts:
        assert tokenizer.encode([text]).ids[0].tolist() == reference(text)


@pytest.mark.slow
@given(TEXTS)
@settings(max_examples=500)
def test_ids_of_texts_that_need_cleaning_are_those_of_transformers(reference: Callable[[str], list[int]], text: str):
    assert tokenizer.encode([text]).ids[0].tolist() == reference(text)


def pairs() -> list[tuple[str, str]]:
    model = json.loads(KNOWN.subwords._pipeline.to_str())["model"]  # type: ignore[attr-defined]
    return [tuple(pair) for pair in model["merges"]]


def test_a_long_text_keeps_its_end_token_and_a_short_one_is_padded_with_zeros():
    text = tokenizer.encode(["word " * 100, "a!"])
    assert text.ids.shape == (2, 77) and text.ids[0, -1] == END
    assert text.ids[1].tolist() == [BEGIN, 320, 256, END] + [0] * 73
    assert text.mask.sum(1).tolist() == [77, 4]


def test_words_start_after_tokens_that_end_words():
    text = tokenizer.encode(["a wombat snorkelling, snorkelling", "a"])
    words = [KNOWN.tokens[i] for i in text.ids[0, 1:-1]]
    assert text.word_start is not None and text.word_start[0, 1]
    assert [b for b in text.word_start[0, 2:-1].tolist()] == [p.endswith("</w>") for p in words[:-1]]
    assert text.word_start[0].sum() == 5 < len(words), "some words must have several tokens"
    assert not text.word_start[:, 0].any() and text.word_start[1].tolist() == [False, True] + [False] * (len(words))


def test_special_tokens_in_a_caption_are_plain_text():
    ids = tokenizer.encode(["<|startoftext|> <start_of_text> <end_of_text> <|endoftext|>"]).ids[0].tolist()
    assert ids.count(BEGIN) == 1 and ids.count(END) == 1


def test_decode_inverts_encode_up_to_the_end_token():
    ids = tokenizer.encode(["Two snorkellers, jumping! \u5317\u4eac", "x " * 30]).ids[0].tolist()
    assert tokenizer.decode([*ids, 320]) == "two snorkellers , jumping ! \u5317\u4eac"
    assert tokenizer.decode([0, 256]) == "!!", "the padding's id is a word too"


@pytest.mark.slow
def test_a_tokenizer_can_be_pickled():
    text = pickle.loads(pickle.dumps(tokenizer)).encode(["a snowboarder"])
    assert text.ids.tolist() == tokenizer.encode(["a snowboarder"]).ids.tolist()
