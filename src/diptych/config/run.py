"""Settings of runs, as frozen dataclasses of plain values. A variant of a run is a `dataclasses.replace`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from diptych.config.data import ImageSettings, Streaming
from diptych.config.objectives import Objectives
from diptych.config.training import Training
from diptych.config.validation import (
    BoxesPerSide,
    Count,
    CountOrZero,
    Dim,
    Factor,
    Fraction,
    FractionBelowOne,
    MaxItems,
    NumClasses,
    PositiveFraction,
    Range,
    Steps,
    Text,
    settings,
)
from diptych.models.configs import Model


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


BOXES = ("boxes", "hypercolumns")
"""Values of `Embedders.image` for features of a frozen CNN in fixed boxes: of its last map, or of all stages."""


TextEmbedder = Literal["own", "minilm", "minilm_causal", "minilm_words"]
"""Which text features a model's first block receives:

- ``own``: its own word embeddings;
- ``minilm``: contextual states of a frozen MiniLM (bidirectional);
- ``minilm_causal``: states of three of its layers under a causal mask, for models with a text decoder;
- ``minilm_words``: its context-free vector of each word.
"""


@settings("embedders")
class Embedders:
    """What feeds a model's first block: its own embeddings, or features of frozen networks."""

    # own: patch embeddings; grid: a frozen CNN's feature map; boxes: that map pooled in fixed boxes; hypercolumns: the
    # maps of all its stages pooled in them; PATH: detector features (.tsv, LMDB, or a folder of .npz)
    image: Text = "own"
    # boxes, hypercolumns: width and height as shares of the image's, and positions along each side; empty: 36 boxes
    scales: Annotated[tuple[tuple[PositiveFraction, PositiveFraction, BoxesPerSide], ...], MaxItems(64)] = ()
    feature_dim: Dim = 1280  # dimension of the region features read from PATH
    text: TextEmbedder = "own"  # own: word embeddings; others: features of a frozen MiniLM
    dropout: FractionBelowOne = 0.0  # dropout on frozen image and text features, before their projection


@settings()
class Pretrain:
    """A pre-training run."""

    model: Model
    objectives: Objectives
    images: ImageSettings
    training: Training
    data: Text = "scenes"  # a folder, a file, tar shards, or the built-in world: scenes, scenes:2000
    split: Text = "train"  # training split
    init_from: str = ""  # run folder to initialise the weights from; empty: random weights
    recipe: str = ""  # name of the run
    max_patches: CountOrZero = 0  # maximum patches per image in training, sampled at random (ViLT: 200); 0: all
    teacher: Teacher = Teacher()
    embedders: Embedders = Embedders()
    # factor on the initial weights of linear layers: BERT's std 0.02 suits 768 channels; narrow models need more
    init_scale: Factor = 1.0
    heads: tuple[str, ...] = ("*",)  # pre-training heads to keep, as patterns (* matches any text)
    freeze: tuple[str, ...] = ()  # parameters to freeze, as patterns of their names (* matches any text)
    init_image_from: str = ""  # ViT run folder to initialise the image encoder from (see diptych import vit)
    init_text_from: str = ""  # BERT checkpoint to initialise the text encoder from
    visual_tokenizer: str = ""  # masked_codes*: run folder of the visual tokenizer
    mixgen: Fraction = 0.0  # share of training pairs mixed with another pair (MixGen: 0.25)
    streaming: Streaming = field(default_factory=Streaming)
    corpus: str = ""  # the paper's training data, for the record
    vocabulary: str = ""  # vocabulary file of the text tokenizer; empty: the bundled one of the model's size


@settings()
class Finetune:
    """A fine-tuning run: a task head on a pre-trained model, or on random weights if `init_from` is empty."""

    task: Text
    model: Model
    images: ImageSettings
    training: Training
    data: Text = "scenes"  # a folder, a file, tar shards, or the built-in world: scenes, scenes:2000
    split: Text = "train"  # training split
    init_from: str = ""  # run folder to initialise the weights from; empty: random weights
    recipe: str = ""  # name of the run
    embedders: Embedders = Embedders()
    init_scale: Factor = 1.0  # factor on the initial weights of linear layers
    min_answer_count: Count = 1  # VQA: minimum questions with an answer in training for it to become a class
    max_answers: NumClasses = 3129  # VQA: maximum number of answer classes
    negative_texts: Annotated[int, Range(1, 1024)] = 15  # retrieval: negative texts per pair
    ablate: Literal["", "image", "text"] = ""  # VQA: hide the image or the text in training and evaluation (baseline)
    vocabulary: str = ""  # vocabulary file of the text tokenizer; empty: the bundled one of the model's size


@settings()
class ImportedCheckpoint:
    """An official checkpoint that no recipe expresses: it can be exported, not trained."""

    system: str
    task: str
    arguments: dict[str, Any]  # the model's arguments, inferred from the checkpoint
    checkpoint: str  # file name
    why: str = ""  # the part that no recipe expresses
