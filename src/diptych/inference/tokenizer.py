"""Text tokenizer of a model: from its vocabulary file, or the bundled one of the model's vocabulary size."""

from __future__ import annotations

from pathlib import Path

from diptych.data.tokenizers.tokenizer import SIZES, Tokenizer, bundled, read_vocabulary
from diptych.data.tokenizers.vocabulary import Vocabulary
from diptych.inference.saved_model import ModelSettings, RunError
from diptych.models.configs import BEiT3Config, ImageOnlyModel, max_text_length, model_name, tokenizer_size


def vocabulary_of(settings: ModelSettings) -> Vocabulary | None:
    """The vocabulary of the file, if there is one, else the bundled one of the model's vocabulary size, else None.

    The model's embedding table may have more rows than the vocabulary has tokens.

    Raises:
        DataError: the file cannot be read.
        RunError: its vocabulary does not fit the model.
    """
    model = settings.model
    size = tokenizer_size(model)
    if not settings.vocabulary or not size:
        return bundled(size)
    known = read_vocabulary(Path(settings.vocabulary))
    if known.size > size:
        raise RunError(
            f"{settings.vocabulary} has {known.size:,} tokens, but model.vocab_size is {size:,}: give --model.vocab_size "
            f"{known.size}"
        )
    if isinstance(model, BEiT3Config) and model.mask_token_id != known.mask:
        raise RunError(
            f"{settings.vocabulary}: its mask token is {known.mask}, but model.mask_token_id is {model.mask_token_id}: "
            f"set model.mask_token_id to {known.mask}"
        )
    return known


def tokenizer_of(settings: ModelSettings) -> Tokenizer:
    """The text tokenizer of a model.

    Raises:
        DataError: the vocabulary file cannot be read.
        RunError: the model reads no text, its vocabulary is unknown, or the file does not fit it.
    """
    model = settings.model
    if isinstance(model, ImageOnlyModel):
        raise RunError(f"a {model_name(model)} reads no text; this needs a model that reads text and image")
    known = vocabulary_of(settings)
    if known is None:
        bundled_sizes = " or ".join(f"{size:,} ({name})" for name, size in SIZES.items())
        raise RunError(
            f"model.vocab_size is {model.vocab_size}, but bundled vocabularies have {bundled_sizes} tokens; give "
            "--vocabulary FILE: BEiT-3's SentencePiece model, a word vocabulary of SCAN or VSE++, or a list of "
            "WordPiece tokens (diptych train-tokenizer trains one)"
        )
    return Tokenizer(max_text_length(model), known)
