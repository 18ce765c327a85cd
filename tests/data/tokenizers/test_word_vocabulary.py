"""VSE++'s and SCAN's word lists: their ids, and pickles read without running code."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from diptych.data.sources.base import DataError
from diptych.data.tokenizers.tokenizer import Tokenizer, read_vocabulary
from diptych.data.tokenizers.word_vocabulary import SPECIAL
from diptych.utils.safe_pickle import NotPlain, read_plain

WORDS = (*SPECIAL, "a", "dog", "is", "n't", "sea", ".", "``", "''")


def fields(listed: tuple[str, ...] = WORDS) -> dict[str, Any]:
    return {"word2idx": {w: i for i, w in enumerate(listed)}, "idx2word": dict(enumerate(listed)), "idx": len(listed)}


def written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def pickled(module: str, protocol: int, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A pickle of an object of VSE++'s class, which is not importable here."""
    theirs = ModuleType(module)
    theirs.Vocabulary = type("Vocabulary", (), {"__module__": module})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module, theirs)
    made = theirs.Vocabulary()
    vars(made).update(fields())
    return pickle.dumps(made, protocol)


def test_scans_words_have_their_ids(tmp_path: Path):
    vocab = read_vocabulary(written(tmp_path / "f30k_precomp_vocab.json", json.dumps(fields()).encode()))
    assert vocab.tokens == WORDS and (vocab.pad, vocab.cls, vocab.sep, vocab.unknown) == (0, 1, 2, 3)
    text = Tokenizer(50, vocab).encode(['The DOG isn\'t "a sea."', "a <pad> dog"])
    first = [1, 3, 5, 6, 7, 10, 4, 8, 9, 11, 2]
    assert text.ids.tolist() == [first, [1, 4, 3, 3, 3, 5, 2, *[0] * 4]], "<pad> in a text is three words"
    assert text.mask.sum(1).tolist() == [11, 7]
    assert text.word_start is not None and text.word_start.sum(1).tolist() == [9, 5]
    assert Tokenizer(50, vocab).decode(first) == "<unk> dog is n't `` a sea . ''"
    again = pickle.loads(pickle.dumps(Tokenizer(50, vocab))).encode(["a dog"])
    assert again.ids.tolist() == [[1, 4, 5, 2]]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("module", ["vocab", "__main__"])
def test_vsepps_pickle_is_read_without_running_it(
    module: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = pickled(module, protocol, monkeypatch)
    monkeypatch.undo()
    assert read_vocabulary(written(tmp_path / "f8k_precomp_vocab.pkl", content)).tokens == WORDS


def test_a_python_2_pickle_is_read(tmp_path: Path):
    """The pickle as Python 2 writes it with protocol 2: words of bytes and of unicode."""
    listed = b"".join(b"U" + bytes([len(w)]) + w.encode() + b"K" + bytes([i]) for i, w in enumerate(WORDS[:4]))
    listed += b"X\x04\x00\x00\x00caf\xc3K\x04".replace(b"\x04\x00\x00\x00caf\xc3", b"\x05\x00\x00\x00caf\xc3\xa9")
    content = (
        b"\x80\x02c__main__\nVocabulary\nq\x00)\x81q\x01}q\x02(U\x08word2idxq\x03}q\x04("
        + listed
        + b"uU\x03idxK\x05ub."
    )
    assert read_vocabulary(written(tmp_path / "v.pkl", content)).tokens == (*SPECIAL, "café")


def test_a_pickle_that_runs_code_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    content = pickled("vocab", 2, monkeypatch)
    for program, message in (
        (pickle.dumps(Evil()), "could run code"),
        (content.replace(b"vocab\n", b"other\n"), "could run code"),
        (content.replace(b")\x81", b"N\x81"), "object without arguments"),
        (content[:-5], "broken|no end"),
    ):
        with pytest.raises(DataError, match=message):
            read_vocabulary(written(tmp_path / "v.pkl", program))
    with pytest.raises(NotPlain, match="could run code"):
        read_plain(content)


def test_a_pickle_with_repeated_references_to_a_dict_takes_linear_time():
    inner: dict[str, Any] = {}
    for _ in range(60):
        inner = {"a": inner, "b": inner}
    result = read_plain(pickle.dumps(inner))
    assert result["a"] is result["b"]


TWINS = b"K\x01K\x01\x86" + b"q\x00h\x00\x86" * 60  # a pair of the same pair twice, sixty deep


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"}" + TWINS + b"K\x01s.", "a tuple as a key"),
        (b"cnumpy\ndtype\n" + TWINS + b"\x85R.", "an array of 'tuple'"),
        (b"cnumpy\ndtype\nU\x02f4\x85R(K\x03" + TWINS + b"NNNtb.", "byte order"),
        (b"(" + b"c_codecs\nencode\nU\x64" + b"a" * 100 + b"q\x00U\x06latin1\x86R"
         + b"c_codecs\nencode\nh\x00U\x06latin1\x86R" * 9 + b"t.", "more bytes than it contains"),
    ],
    ids=["key", "numbers", "order", "bytes"],
)  # fmt: skip
def test_a_small_pickle_takes_little_time_and_memory(program: bytes, message: str):
    with pytest.raises(NotPlain, match=message):
        read_plain(b"\x80\x02" + program)


def test_an_invalid_word_list_raises(tmp_path: Path):
    duplicate = fields() | {"word2idx": {**fields()["word2idx"], "dog": 4}}
    for content, message in (
        (b"{", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[]", "no word2idx"),
        (b'{"word2idx": {"a": true}}', "must be 0 to 0"),
        (json.dumps(duplicate).encode(), "must be 0 to 11, each once"),
        (json.dumps(fields(WORDS[1:])).encode(), "<pad> must be among the words"),
    ):
        with pytest.raises(DataError, match=message):
            read_vocabulary(written(tmp_path / "v.json", content))
