"""Settings of CapFilt, caption filtering and re-captioning (BLIP, section 3.3), and of the noise that measures it."""

from __future__ import annotations

from typing import Annotated, Literal

from diptych.config.data import DataSettings
from diptych.config.validation import (
    Count,
    CountOrZero,
    Factor,
    Fraction,
    MaxLength,
    NumBeams,
    PositiveFraction,
    Range,
    Samples,
    Seed,
    Text,
    Workers,
    settings,
)


@settings()
class CapFilt(DataSettings):
    """Captions images with one model and filters image-text pairs with another (BLIP, section 3.3).

    Without a captioner no captions are generated; without a filter none are dropped (BLIP, table 1, ablates each
    separately). The defaults are the paper's if it states them.
    """

    data: str = ""  # tar shards, or any other data set that --data accepts
    captioner: str = ""  # run folder of the model that generates captions; empty: none
    filter: str = ""  # run folder of the model that scores captions; empty: none
    split: str = ""  # empty: all samples of tar shards, the train split of other data
    min_itm: Fraction = 0.5  # keep a caption if the filter's image-text matching probability is above this
    min_cosine: Annotated[float, Range(-1, 1)] = -1.0  # and its image-text cosine is above this; -1: any cosine
    # synthetic captions that pass the filter: added to human ones, or used only to replace dropped ones
    synthetic: Literal["add", "replace"] = "add"
    decoding: Literal["nucleus", "beam_search", "greedy"] = "nucleus"  # decoding strategy of the captioner
    top_p: PositiveFraction = 0.9  # nucleus sampling: probability mass to sample from
    num_beams: NumBeams = 3  # beam search: beam size
    repetition_penalty: Factor = 1.1  # nucleus sampling: penalty on tokens already generated (official code)
    min_length: CountOrZero = 5  # minimum tokens of a synthetic caption, start token and prompt included
    max_length: MaxLength = 20  # maximum tokens of a synthetic caption, start token and prompt included
    prompt: str = ""  # prompt that the captioner was trained with: "a picture of" for BLIP's fine-tuned captioner
    # features for near-duplicate detection: the filter's image embedding, or a frozen CNN's (extra cnn)
    similarity: Literal["embedding", "cnn"] = "embedding"
    # cosine above which two images count as duplicates; 0: 0.97 for the filter's embeddings, 0.85 for the CNN's, as
    # measured
    duplicate_cosine: Fraction = 0.0
    duplicates: Literal["list", "drop"] = "list"  # images that duplicate an earlier one: only list them, or drop them
    against: str = ""  # evaluation data that must not leak into training, such as a test set
    against_split: str = "test"  # split of `against`
    leaks: Literal["list", "drop"] = "list"  # images that duplicate one in `against`: only list them, or drop them
    scored: str = ""  # output folder of an earlier run: reuse its captions and scores, and filter again
    shard_size: Count = 1000  # images per shard, if the data is not already in shards
    batch_size: Samples = 64  # images per forward pass
    seed: Seed = 0  # random seed
    device: Text = "auto"  # "auto" prefers cuda, then mps, then cpu
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # "auto": bf16 autocast where it is faster, else fp32
    workers: Workers = 2  # image-loading processes per rank


@settings()
class CorruptCaptions(DataSettings):
    """Mismatches a share of the image-caption pairs of a data set and records the true pairing."""

    data: str = ""  # a folder, a file, tar shards, or the built-in scenes
    split: Text = "train"  # split of the data
    fraction: Fraction = 0.5  # share of captions that are moved to other images
    first: CountOrZero = 0  # index of the first image to use
    last: CountOrZero = 0  # index after the last image to use; 0: to the end
    shard_size: Count = 1000  # images per shard
    seed: Seed = 0  # random seed
