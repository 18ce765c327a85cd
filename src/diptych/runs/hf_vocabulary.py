"""The tokenizer files of a Hugging Face folder against the vocabulary that an imported run would use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.checkpoints.huggingface.folder import read_object
from diptych.checkpoints.read import WeightsError
from diptych.data.tokenizers.tokenizer import BERT, CLIP, vocabulary

LIST, PAIRS, TOKENIZER, OPTIONS = "vocab.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json"
ADDED = ("[DEC]", "[ENC]")  # behind BERT's pieces in BLIP's vocabulary: the model here adds them itself
CLIP_SPECIAL = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}
READS_CLIP, READS_BERT = ("clip", "open_clip"), ("vilt", "blip")


def own_vocabulary(folder: Path, system: str) -> Path | None:
    """The vocabulary file that a run must be given; None where the bundled vocabulary is the same, or there is no file.

    Raises WeightsError where the folder's tokenizer does something else and cannot be used.
    """
    if system in READS_CLIP:
        for name, pieces in _listed(folder, (PAIRS, TOKENIZER)):
            named = {CLIP_SPECIAL.get(piece, piece): i for piece, i in pieces.items()}
            _check_clip(folder / name, named)
        return None
    if system not in READS_BERT:
        return None
    _check_options(folder)
    if (folder / LIST).is_file():
        lines = (folder / LIST).read_text(encoding="utf-8", errors="replace").splitlines()
        if _as_bundled(lines):
            return None
        return folder / LIST
    for name, pieces in _listed(folder, (TOKENIZER,)):
        if not _as_bundled(sorted(pieces, key=lambda piece: pieces[piece])):
            raise WeightsError(
                f"{folder / name}: its pieces are not those of {BERT}; write them in order, a line each, to a file and give "
                "--vocabulary FILE"
            )
    return None


def _as_bundled(pieces: list[str]) -> bool:
    return [piece for piece in pieces if piece not in ADDED] == list(vocabulary(BERT).pieces)


def _listed(folder: Path, names: tuple[str, ...]) -> list[tuple[str, dict[str, int]]]:
    """The pieces and ids of the first of some files that is there."""
    for name in names:
        path = folder / name
        if not path.is_file():
            continue
        held: Any = read_object(path)
        if name == TOKENIZER:
            held = _model(path, held)
        if not isinstance(held, dict) or not all(isinstance(i, int) for i in held.values()):
            raise WeightsError(f"{path}: expected pieces and their ids")
        return [(name, held)]
    return []


def _model(path: Path, held: dict[str, Any]) -> Any:
    """The vocabulary of a tokenizer.json, whose text must be lower-cased."""
    model, normal = held.get("model"), held.get("normalizer")
    if not isinstance(model, dict) or model.get("type") not in ("WordPiece", "BPE"):
        raise WeightsError(
            f"{path}: model is {model.get('type') if isinstance(model, dict) else model!r}; expected WordPiece or BPE"
        )
    if isinstance(normal, dict) and normal.get("lowercase") is False:
        raise WeightsError(f"{path}: normalizer.lowercase is False; expected True: texts are lower-cased here")
    pieces = model.get("vocab")
    added = held.get("added_tokens") or []
    if isinstance(pieces, dict) and all(isinstance(one, dict) and isinstance(one.get("content"), str) for one in added):
        return pieces | {one["content"]: one.get("id") for one in added}
    return pieces


def _check_options(folder: Path) -> None:
    """BERT's options that change how a text is cut."""
    path = folder / OPTIONS
    options = read_object(path) if path.is_file() else {}
    for key, expected in (("do_lower_case", True), ("strip_accents", None), ("tokenize_chinese_chars", True)):
        if key in options and options[key] not in (expected, True if key == "strip_accents" else expected):
            raise WeightsError(f"{path}: {key} is {options[key]!r}; expected {expected!r}: nothing else is supported")


def _check_clip(path: Path, named: dict[str, int]) -> None:
    """Raises WeightsError unless the pieces are CLIP's own."""
    known = {piece: i for i, piece in enumerate(vocabulary(CLIP).pieces)}
    wrong = next((piece for piece in known if named.get(piece) != known[piece]), None)
    wrong = wrong or next((piece for piece in named if piece not in known), None)
    if wrong is not None:
        raise WeightsError(
            f"{path}: has {wrong!r} at {named.get(wrong)}, CLIP's vocabulary at {known.get(wrong)}: no other byte pairs are supported"
        )
