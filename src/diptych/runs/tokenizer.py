"""What a run's model can read."""

from __future__ import annotations

from pathlib import Path

from diptych.config.run import Finetune, Pretrain
from diptych.data.tokenizers.tokenizer import SIZES, Tokenizer, bundled, read_vocabulary
from diptych.data.tokenizers.vocabulary import Vocabulary
from diptych.models.configs import BEiT3Config, ImageOnlyModel, max_text_length, model_name, tokenizer_size
from diptych.runs.run_folder import RunError, read_run


def vocabulary_of(run: Pretrain | Finetune) -> Vocabulary | None:
    """The vocabulary that the run's texts are cut with: its file's, else the bundled one of its model's size, else None.

    Raises DataError, and RunError where a file's does not fit the model, which may have rows to spare.
    """
    size = tokenizer_size(run.model)
    if not run.vocabulary or not size:
        return bundled(size)
    known = read_vocabulary(Path(run.vocabulary))
    if known.size > size:
        raise RunError(
            f"{run.vocabulary} has {known.size:,} pieces, but the model {size:,}: give --model.vocab_size {known.size}"
        )
    if isinstance(run.model, BEiT3Config) and run.model.mask_token_id != known.mask:
        raise RunError(
            f"{run.vocabulary} has its mask at {known.mask}, the model at {run.model.mask_token_id}: set model.mask_token_id"
        )
    return known


def tokenizer_of(run: Pretrain | Finetune) -> Tokenizer:
    """From texts to the pieces that the run's model reads.

    Raises DataError, RunError where it reads none, or unknown ones.
    """
    if isinstance(run.model, ImageOnlyModel):
        raise RunError(f"a {model_name(run.model)} reads no text; this needs a model that reads text and image")
    known = vocabulary_of(run)
    if known is None:
        there = " or ".join(f"the {size:,} pieces of {name}" for name, size in SIZES.items())
        raise RunError(
            f"model.vocab_size is {run.model.vocab_size}, but texts come in {there}; give --vocabulary FILE: BEiT-3's sentencepiece "
            "model, SCAN's or VSE++'s words, or a list of pieces (diptych train-tokenizer learns one)"
        )
    return Tokenizer(max_text_length(run.model), known)


def check_pieces(run: Pretrain | Finetune) -> None:
    """Raises RunError where a run reads other pieces than the one that it starts from, whose word vectors stand for those."""
    if not run.init_from or isinstance(run.model, ImageOnlyModel):
        return
    before, _ = read_run(Path(run.init_from))
    if isinstance(before.model, ImageOnlyModel):
        return
    known, other = vocabulary_of(run), vocabulary_of(before)
    if known and other and known.pieces != other.pieces:
        told = f"give --vocabulary {before.vocabulary}" if before.vocabulary else "give no --vocabulary"
        raise RunError(f"{run.init_from} learned with the vocabulary {other.name}, this run has {known.name}: {told}")
