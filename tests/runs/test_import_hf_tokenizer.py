"""The tokenizer files beside a Hugging Face checkpoint: equal to the bundled vocabulary, used, or refused; never ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.cli import main
from diptych.data.tokenizers.tokenizer import BERT, CLIP, vocabulary
from diptych.runs.tokenizer import tokenizer_of
from tests.runs.hf_random import imported, saved

pytest.importorskip("transformers")

TOWER: dict[str, Any] = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
PICTURES = {"image_size": 16, "patch_size": 8}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vilt(folder: Path, words: int) -> Path:
    saved("ViltForMaskedLM", TOWER | PICTURES | {"vocab_size": words, "max_position_embeddings": 9}, folder)
    return folder


def clip(folder: Path) -> Path:
    text = TOWER | {"vocab_size": 49408, "max_position_embeddings": 9}
    saved("CLIPModel", {"vision_config": TOWER | PICTURES, "text_config": text, "projection_dim": 4}, folder)
    return folder


def line(capsys: pytest.CaptureFixture[str], system: str, folder: Path, out: Path) -> str:
    capsys.readouterr()
    assert main(["import", system, str(folder), "--out", str(out)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    return said


def wordpiece(pieces: list[str], lowercase: bool = True) -> str:
    model = {"type": "WordPiece", "vocab": {piece: i for i, piece in enumerate(pieces)}}
    return json.dumps(
        {"model": model, "normalizer": {"type": "BertNormalizer", "lowercase": lowercase}, "added_tokens": []}
    )


@pytest.mark.slow
def test_the_bundled_pieces_are_used_as_they_are(tmp_path: Path):
    folder, pieces = vilt(tmp_path / "one", 30522), list(vocabulary(BERT).pieces)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    assert imported("vilt", folder, tmp_path / "a")[0].vocabulary == ""
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").write_text(wordpiece([*pieces, "[DEC]", "[ENC]"]))
    assert imported("vilt", folder, tmp_path / "b")[0].vocabulary == ""


def test_another_list_is_the_run_s_vocabulary(tmp_path: Path):
    folder, pieces = vilt(tmp_path / "one", 8), [*SPECIAL, "red", "square", "##s"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    run = imported("vilt", folder, tmp_path / "run")[0]
    assert Path(run.vocabulary).parent == tmp_path / "run"
    assert tokenizer_of(run).encode(["Red squares"]).ids.tolist()[0][:5] == [2, 5, 6, 7, 3]


@pytest.mark.parametrize(
    ("file", "held", "said"),
    [
        ("vocab.txt", "\n".join([*SPECIAL, *"abcd"]), "has 9 pieces, but the model 8"),
        ("tokenizer.json", wordpiece([*SPECIAL, "a", "b", "c"]), "its pieces are not those of bert-base-uncased"),
        ("tokenizer.json", wordpiece(SPECIAL, lowercase=False), "normalizer.lowercase is False; expected True"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "model is 'Unigram'; expected WordPiece or BPE"),
        ("tokenizer.json", "[1]", "holds a list, not names and values"),
        ("tokenizer_config.json", '{"do_lower_case": false}', "do_lower_case is False; expected True"),
        ("tokenizer_config.json", '{"strip_accents": false}', "strip_accents is False; expected None"),
    ],
)
def test_a_tokenizer_that_does_something_else_is_refused(file: str, held: str, said: str, tmp_path: Path, capsys):
    folder = vilt(tmp_path / "one", 8)
    (folder / file).write_text(held)
    assert said in line(capsys, "vilt", folder, tmp_path / "run") and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_clip_s_byte_pairs_must_be_its_own(tmp_path: Path, capsys):
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    pieces = {names.get(piece, piece): i for i, piece in enumerate(vocabulary(CLIP).pieces)}
    folder = clip(tmp_path / "one")
    (folder / "vocab.json").write_text(json.dumps(pieces))
    assert imported("clip", folder, tmp_path / "a")[0].vocabulary == ""
    first, second = list(pieces)[300:302]
    (folder / "vocab.json").write_text(json.dumps(pieces | {first: pieces[second], second: pieces[first]}))
    said = line(capsys, "clip", folder, tmp_path / "b")
    assert f"has {first!r} at 301, CLIP's vocabulary at 300" in said
    (folder / "vocab.json").unlink()
    held = {"model": {"type": "BPE", "vocab": pieces | {"more and": 49408}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(held))
    assert "has 'more and' at 49408, CLIP's vocabulary at None" in line(capsys, "clip", folder, tmp_path / "c")


def test_a_text_must_end_where_the_bundled_vocabulary_ends_it(tmp_path: Path, capsys):
    folder = clip(tmp_path / "one")
    file = folder / "config.json"
    held = json.loads(file.read_text())
    held["text_config"]["eos_token_id"] = 7
    file.write_text(json.dumps(held))
    assert "text_config.eos_token_id is 7; expected 49407" in line(capsys, "clip", folder, tmp_path / "a")
