"""Settings of runs, as frozen dataclasses of plain values. A variant of a run is a `dataclasses.replace`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from diptych.config.data import DataSettings, Streaming
from diptych.config.objectives import Objectives
from diptych.config.tasks import FinetuningOptions
from diptych.config.training import Training
from diptych.config.validation import (
    CountOrZero,
    Factor,
    Fraction,
    Range,
    Steps,
    Text,
    settings,
)
from diptych.inference.saved_model import ModelSettings


@settings("teacher")
class Teacher:
    """A momentum (EMA) teacher and its feature queue (ALBEF, section 3.2)."""

    momentum: Fraction = 0.0  # EMA momentum of the teacher's weights; 0: no teacher
    alpha: Fraction = 0.4  # weight of the teacher's soft targets
    warmup: Steps = 0.0  # steps over which alpha grows from 0; below 1: a share of the run
    queue_size: Annotated[int, Range(0, 2**24)] = 0  # image-text feature pairs in the queue

    def __post_init__(self) -> None:
        if self.queue_size and not self.momentum:
            raise ValueError(
                f"teacher.queue_size must be 0 if teacher.momentum is 0 (no teacher): got {self.queue_size}; "
                "set teacher.momentum, or teacher.queue_size to 0"
            )


@settings(kw_only=True)
class TrainingRun(ModelSettings, DataSettings):
    """What pre-training and fine-tuning runs share: a model, data, and how it is trained."""

    training: Training
    data: Text = "scenes"  # a folder, a file, tar shards, or the built-in world: scenes, scenes:2000
    split: Text = "train"  # training split
    init_from: str = ""  # run folder to initialise the weights from; empty: random weights
    recipe: str = ""  # name of the run
    # factor on the initial weights of linear layers: BERT's std 0.02 suits 768 channels; narrow models need more
    init_scale: Factor = 1.0
    # parameters of the model to freeze, as patterns of their names: * matches any text, {0..5} the numbers from 0 to 5;
    # those that a later pattern after ! matches are trained again
    freeze: tuple[str, ...] = ()


@settings(kw_only=True)
class Pretrain(TrainingRun):
    """A pre-training run."""

    objectives: Objectives
    max_patches: CountOrZero = 0  # maximum patches per image in training, sampled at random (ViLT: 200); 0: all
    teacher: Teacher = Teacher()
    heads: tuple[str, ...] = ("*",)  # pre-training heads to keep, as patterns (* matches any text)
    init_image_from: str = ""  # ViT run folder to initialise the image encoder from (see diptych import vit)
    init_text_from: str = ""  # BERT checkpoint to initialise the text encoder from
    visual_tokenizer: str = ""  # masked_codes*: run folder of the visual tokenizer
    mixgen: Fraction = 0.0  # share of training pairs mixed with another pair (MixGen: 0.25)
    streaming: Streaming = field(default_factory=Streaming)
    corpus: str = ""  # the paper's training data, for the record


@settings(kw_only=True)
class Finetune(TrainingRun):
    """A fine-tuning run: a task head on a pre-trained model, or on random weights if `init_from` is empty."""

    task: Text
    options: FinetuningOptions  # of the task
