"""Tokenizer files of a Hugging Face folder: equal to the bundled vocabulary, used, or an error; never ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import diptych
from diptych.cli import main
from diptych.data.tokenizers.tokenizer import BERT, CLIP, vocabulary
from diptych.inference.tokenizer import tokenizer_of
from tests.data.tokenizers.test_tokenizer_json import byte_pair_vocabulary
from tests.runs.hf_random import imported, saved

transformers = pytest.importorskip("transformers")

TOWER: dict[str, Any] = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
IMAGE_SIZES = {"image_size": 16, "patch_size": 8}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vilt(folder: Path, words: int) -> Path:
    saved("ViltForMaskedLM", TOWER | IMAGE_SIZES | {"vocab_size": words, "max_position_embeddings": 9}, folder)
    return folder


def clip(folder: Path) -> Path:
    text = TOWER | {"vocab_size": 49408, "max_position_embeddings": 9}
    saved("CLIPModel", {"vision_config": TOWER | IMAGE_SIZES, "text_config": text, "projection_dim": 4}, folder)
    return folder


def line(capsys: pytest.CaptureFixture[str], system: str, folder: Path, out: Path) -> str:
    capsys.readouterr()
    assert main(["import", system, str(folder), "--out", str(out)]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    return message


def wordpiece(tokens: list[str], lowercase: bool = True) -> str:
    model = {"type": "WordPiece", "vocab": {piece: i for i, piece in enumerate(tokens)}}
    return json.dumps(
        {
            "model": model,
            "normalizer": {"type": "BertNormalizer", "lowercase": lowercase},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "added_tokens": [],
        }
    )


@pytest.mark.slow
def test_the_bundled_vocabulary_is_used_if_it_is_the_same(tmp_path: Path):
    folder, tokens = vilt(tmp_path / "one", 30522), list(vocabulary(BERT).tokens)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    assert imported("vilt", folder, tmp_path / "a")[0].vocabulary == ""
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").write_text(wordpiece([*tokens, "[DEC]", "[ENC]"]))
    assert imported("vilt", folder, tmp_path / "b")[0].vocabulary == ""


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_another_vocabulary_becomes_the_run_s(file: str, tmp_path: Path):
    folder, tokens = vilt(tmp_path / "one", 8), [*SPECIAL, "red", "square", "##s"]
    (folder / file).write_text("\n".join(tokens) + "\n" if file == "vocab.txt" else wordpiece(tokens))
    run = imported("vilt", folder, tmp_path / "run")[0]
    assert Path(run.vocabulary).parent == tmp_path / "run"
    assert tokenizer_of(run).encode(["Red squares"]).ids.tolist()[0][:5] == [2, 5, 6, 7, 3]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("vocab.txt", "\n".join([*SPECIAL, *"abcd"]), "has 9 tokens, but model.vocab_size is 8"),
        ("tokenizer.json", wordpiece([*SPECIAL, *"abcd"]), "has 9 tokens, but model.vocab_size is 8"),
        ("tokenizer.json", wordpiece(SPECIAL, lowercase=False), "normalizer.lowercase is False; expected True"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "model.type is 'Unigram'; expected WordPiece or BPE"),
        ("tokenizer.json", "[1]", "holds a list; expected an object of keys and values"),
        ("tokenizer_config.json", '{"do_lower_case": false}', "do_lower_case is False; expected True"),
        ("tokenizer_config.json", '{"strip_accents": false}', "strip_accents is False; expected None"),
    ],
)
def test_an_unsupported_tokenizer_is_an_error(file: str, content: str, message: str, tmp_path: Path, capsys):
    folder = vilt(tmp_path / "one", 8)
    (folder / file).write_text(content)
    assert message in line(capsys, "vilt", folder, tmp_path / "run") and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_clip_s_vocabulary_must_be_the_bundled_one(tmp_path: Path, capsys):
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    tokens = {names.get(piece, piece): i for i, piece in enumerate(vocabulary(CLIP).tokens)}
    folder = clip(tmp_path / "one")
    (folder / "vocab.json").write_text(json.dumps(tokens))
    assert imported("clip", folder, tmp_path / "a")[0].vocabulary == ""
    first, second = list(tokens)[300:302]
    (folder / "vocab.json").write_text(json.dumps(tokens | {first: tokens[second], second: tokens[first]}))
    message = line(capsys, "clip", folder, tmp_path / "b")
    assert f"has {first!r} at 301, CLIP's vocabulary at 300" in message
    (folder / "tokenizer.json").write_text(wordpiece(SPECIAL))
    assert "model.type is 'WordPiece'; expected 'BPE'" in line(capsys, "clip", folder, tmp_path / "c")


def test_another_byte_pair_encoding_becomes_the_run_s(tmp_path: Path, capsys):
    """The model's text features are those of transformers, with transformers' own tokenizer."""
    vocab, merges = byte_pair_vocabulary(0)
    folder, sizes = tmp_path / "one", {"vocab_size": len(vocab), "max_position_embeddings": 9}
    ends = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1}
    config = {"vision_config": TOWER | IMAGE_SIZES, "text_config": TOWER | sizes | ends, "projection_dim": 4}
    theirs = saved("CLIPModel", config, folder)
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    tokenizer.save_pretrained(folder)
    run = imported("clip", folder, tmp_path / "run")[0]
    assert Path(run.vocabulary).parent == tmp_path / "run" and Path(run.vocabulary).suffix == ".json"
    texts = ["a test", "besets 019 dated", "ça va?"]
    expected = theirs.get_text_features(
        **tokenizer(texts, padding=True, truncation=True, max_length=9, return_tensors="pt")
    )
    expected = getattr(expected, "pooler_output", expected)
    for source in (tmp_path / "run", folder):
        vectors = diptych.load(source, device="cpu").embed_texts(texts)
        assert torch.allclose(vectors, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)
    moved = {token: (i + 1) % len(vocab) for token, i in vocab.items()}
    transformers.CLIPTokenizer(vocab=moved, merges=merges).save_pretrained(folder)
    assert "its end token is 0 of" in line(capsys, "clip", folder, tmp_path / "other")


def test_the_end_token_must_be_that_of_the_bundled_vocabulary(tmp_path: Path, capsys):
    folder = clip(tmp_path / "one")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["eos_token_id"] = 7
    file.write_text(json.dumps(config))
    assert "text_config.eos_token_id is 7; expected 49407" in line(capsys, "clip", folder, tmp_path / "a")
