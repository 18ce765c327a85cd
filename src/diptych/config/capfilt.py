"""How captions are cleaned and written anew: CapFilt (BLIP, section 3.3), and the noise that it is measured on."""

from __future__ import annotations

from typing import Annotated, Literal

from diptych.config.validation import (
    Count,
    CountOrNone,
    Factor,
    MaxLength,
    NumBeams,
    Range,
    Samples,
    Seed,
    Share,
    ShareAboveZero,
    Text,
    Workers,
    settings,
)


@settings()
class CapFilt:
    """A captioner's and a filter's work on a set of pairs. Without a captioner nothing is written anew, without a filter
    nothing is dropped (BLIP, table 1 has each alone). The defaults are the paper's where it tells them.
    """

    data: str = ""  # tar shards, or whatever else --data names
    captioner: str = ""  # the run that writes; empty: none
    filter: str = ""  # the run that judges; empty: none
    split: str = ""  # empty: all samples of tars, the train split of other data
    min_itm: Share = 0.5  # a text stays where the filter's matching head gives it more than this probability
    min_cosine: Annotated[float, Range(-1, 1)] = -1.0  # and its contrast more than this cosine; -1: whatever that says
    synthetic: Literal["beside", "instead"] = (
        "beside"  # a synthetic text that stays: beside human ones, or only for dropped ones
    )
    sampling: Literal["nucleus", "beams", "greedy"] = "nucleus"
    top_p: ShareAboveZero = 0.9  # share of the probability that is drawn from
    num_beams: NumBeams = 3
    repetition_penalty: Factor = 1.1  # nucleus: what a piece that was said is worth less (official code)
    min_length: CountOrNone = 5  # pieces of a synthetic text, the first and the prompt's among them
    max_length: MaxLength = 20
    prompt: str = ""  # what the captioner learned to begin with: "a picture of" (BLIP's fine-tuned one)
    similarity: Literal["readout", "cnn"] = (
        "readout"  # images compared by the filter's readout, or a frozen CNN's (extra cnn)
    )
    duplicate_cosine: Share = (
        0.0  # cosine over which two images are one; 0: 0.97 of readouts, 0.85 of the CNN, as measured
    )
    duplicates: Literal["list", "drop"] = "list"  # images like an earlier one that stays
    against: str = ""  # data that must not leak, such as a test set
    against_split: str = "test"
    leaks: Literal["list", "drop"] = "list"  # images like one of `against`
    scored: str = ""  # an earlier bootstrap's folder: its captions and scores are taken, to be decided about anew
    shard_size: Count = 1000  # images a shard, where the data comes in none
    batch_size: Samples = 64  # images looked at together
    seed: Seed = 0
    device: Text = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # "auto": bf16 autocast where the hardware has it, else fp32
    workers: Workers = 2  # processes per rank that load pictures


@settings()
class CorruptCaptions:
    """A set of pairs of which a share is mismatched, the truth beside it."""

    data: str = ""
    split: Text = "train"
    share: Share = 0.5  # of the captions that are dealt to other images
    first: CountOrNone = 0  # images before this one are left out
    last: CountOrNone = 0  # and those from this one on; 0: none
    shard_size: Count = 1000  # images a shard
    seed: Seed = 0
