"""Evaluations of a run: one dataclass per task, with the settings that the task has. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Annotated, Any, ClassVar, Literal

from diptych.config.data import DataSettings
from diptych.config.validation import (
    Count,
    CountOrZero,
    Fraction,
    MaxLength,
    NumBeams,
    NumClasses,
    Range,
    Seed,
    Steps,
    Text,
    Workers,
    settings,
)

RerankBy = Literal["itm", "logit", "sum", "product"]
NumNegatives = Annotated[int, Range(0, 1024)]


@settings()
class NoOptions:
    """The fine-tuning of a task that has no settings of its own."""


@settings()
class VQAOptions:
    """The fine-tuning for visual question answering."""

    min_answer_count: Count = 1  # minimum questions with an answer in training for it to become a class
    max_answers: NumClasses = 3129  # maximum number of answer classes, or of the list that a decoder ranks
    # closed: classify over the frequent answers; open: train an answer decoder (ALBEF, BLIP)
    answers: Literal["closed", "open"] = "closed"
    momentum: Fraction = 0.0  # open: EMA momentum of a teacher whose predictions soften the targets; 0: no teacher
    alpha: Fraction = 0.4  # weight of the teacher's predictions in the targets
    alpha_warmup: Steps = 0.0  # steps over which alpha grows from 0; below 1: a share of the run
    ablate: Literal["", "image", "text"] = ""  # hide the image or the text in training and evaluation (baseline)


@settings()
class RetrievalOptions:
    """The fine-tuning for retrieval by a ranking head: the negatives of each pair (ViLT: 15 texts; ViLBERT: 3 kinds)."""

    negative_texts: NumNegatives = 15  # captions of other images per pair
    negative_images: NumNegatives = 0  # other images per pair
    hard_texts: NumNegatives = 0  # captions of the nearest images per pair
    hard_images: NumNegatives = 0  # nearest images per pair
    nearest_images: Count = 100  # how many nearest images the hard negatives are drawn from

    def __post_init__(self) -> None:
        if not self.num_negatives:
            raise ValueError(
                "negative_texts: at least one of negative_texts, negative_images, hard_texts and hard_images must be "
                "above 0, got 0 for all: a pair is ranked against its negatives"
            )

    @property
    def num_negatives(self) -> int:
        """Negatives of a pair, of all kinds."""
        return self.negative_texts + self.negative_images + self.hard_texts + self.hard_images


@settings()
class GroundingOptions:
    """The fine-tuning for the grounding of phrases."""

    # regions in training: model: those that the model reads; joined: with the true boxes of the image (ViLBERT);
    # true: these only
    proposals: Literal["model", "joined", "true"] = "model"
    true_regions: str = ""  # detector features of the true boxes (.tsv, LMDB, or a folder of .npz); empty: by the CNN
    ablate: Literal["", "image", "text"] = ""  # hide the image or the text in training and evaluation (baseline)


FinetuningOptions = NoOptions | VQAOptions | RetrievalOptions | GroundingOptions
"""The settings that the fine-tuning of each task has; a class for each task that has any."""


@settings()
class Evaluation(DataSettings):
    """What the evaluations of all tasks share. An evaluation is made of the class of its task.

    Class attributes: the name of the `task`; for tasks that models are fine-tuned for, the `untrained` recipe whose
    model supports it, and the class of the `options` of fine-tuning; what the `text` of a sample is called ("" if there
    is none); the `splits` that only its data have; whether its output is in `pixels` of the photograph.
    """

    task: ClassVar[str] = ""
    text: ClassVar[str] = ""
    untrained: ClassVar[str] = ""
    options: ClassVar[type[FinetuningOptions]] = NoOptions
    splits: ClassVar[tuple[str, ...]] = ()
    pixels: ClassVar[bool] = False

    data: str = ""  # empty: the run's training data; needed for a model without a run.json, as an imported one
    split: Text = "val"
    seed: Seed = 0  # random seed
    device: Text = "auto"  # "auto" prefers cuda, then mps, then cpu
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # "auto": bf16 autocast where it is faster, else fp32
    workers: Workers = 2  # data-loading processes
    max_skipped: Fraction = 0.01  # share of unusable samples above which evaluation stops

    @property
    def condition(self) -> str:
        """What makes the evaluation a control or a baseline, in words; "" if nothing."""
        return ""

    def of_run(self, options: FinetuningOptions) -> Evaluation:
        """The evaluation of a run that was fine-tuned with `options`."""
        return self


@settings()
class GalleryEvaluation(Evaluation):
    """What the evaluations on images with captions share."""

    gallery: CountOrZero = 0  # use only the first N images; 0: all
    captions: CountOrZero = 0  # use only the first N captions of each image; 0: all
    shuffle_captions: bool = False  # control: captions of other images, which must bring every score to chance

    @property
    def condition(self) -> str:
        return "shuffled captions (control)" if self.shuffle_captions else ""


@settings()
class Retrieval(GalleryEvaluation):
    """Image-text retrieval: recall in both directions."""

    task: ClassVar[str] = "retrieval"
    text: ClassVar[str] = "text"
    untrained: ClassVar[str] = "vilt.small"
    options: ClassVar[type[FinetuningOptions]] = RetrievalOptions

    rerank: CountOrZero = 32  # re-rank the dual encoder's top N by ITM; 0: no re-ranking
    # re-rank by: itm: ITM probability (ALBEF's paper); logit: ITM logit of a match (its code); sum: this logit + cosine
    # (BLIP); product: ITM x ITC probability. All systems' rules: docs/retrieval.md
    rerank_by: RerankBy = "product"
    folds: Count = 1  # mean recall over N folds of the gallery, in order: 5 for COCO 1k; 1: the whole gallery (5k)


@settings()
class Captioning(GalleryEvaluation):
    """Captioning: captions by beam search, scored by BLEU, ROUGE-L and CIDEr-D."""

    task: ClassVar[str] = "captioning"

    num_beams: NumBeams = 3  # beam size
    max_length: MaxLength = 30  # maximum tokens, start and end tokens included


@settings()
class Matching(GalleryEvaluation):
    """A pre-training run's own losses and metrics, and its ITM accuracy."""

    task: ClassVar[str] = "matching"


@settings()
class VQA(Evaluation):
    """Visual question answering: the official VQA accuracy."""

    task: ClassVar[str] = "vqa"
    text: ClassVar[str] = "question"
    splits: ClassVar[tuple[str, ...]] = ("test-dev", "test-std")
    untrained: ClassVar[str] = "vilt.small"
    options: ClassVar[type[FinetuningOptions]] = VQAOptions

    ablate: Literal["", "image", "text"] = ""  # hide the image or the text (baseline)
    # an answer decoder's answers: ranked: the likeliest of a list; free: generated by beam search
    score: Literal["both", "ranked", "free"] = "both"
    candidates: str = ""  # JSON list of the answers that a decoder ranks; empty: the run's

    @property
    def condition(self) -> str:
        return f"{self.ablate} ablated (baseline)" if self.ablate else ""

    def of_run(self, options: FinetuningOptions) -> Evaluation:
        """The evaluation of a run, whose image or text stays hidden if it was in training."""
        if self.ablate or not isinstance(options, VQAOptions):
            return self
        return replace(self, ablate=options.ablate)


@settings()
class Classification(Evaluation):
    """Image classification: top-1 and top-5 accuracy; zero-shot for a model without a trained classifier."""

    task: ClassVar[str] = "classification"
    untrained: ClassVar[str] = "vit.base"

    labels: str = ""  # zero-shot: the classes, between commas; empty: those of the data
    # zero-shot: texts with {} for the class; the features of several are averaged
    prompts: tuple[Text, ...] = ("a photo of a {}.",)

    def __post_init__(self) -> None:
        if not self.prompts or any("{}" not in prompt for prompt in self.prompts):
            raise ValueError(f"prompts must be texts with {{}} in the place of the class: got {self.prompts}")

    @property
    def condition(self) -> str:
        return f"of the classes {self.labels}" if self.labels else ""


@settings()
class Grounding(Evaluation):
    """Grounding of phrases: share of phrases whose best region has an IoU above 0.5 with the true box."""

    task: ClassVar[str] = "grounding"
    text: ClassVar[str] = "phrase"
    splits: ClassVar[tuple[str, ...]] = ("testA", "testB")
    pixels: ClassVar[bool] = True
    untrained: ClassVar[str] = "vilbert.small"
    options: ClassVar[type[FinetuningOptions]] = GroundingOptions

    proposals: Literal["model", "true"] = "model"  # regions: those that the model reads, or the true boxes of the image
    true_regions: str = ""  # detector features of the true boxes; empty: by the CNN
    ablate: Literal["", "image", "text"] = ""  # hide the image or the text (baseline)
    # weakly supervised: score regions by Grad-CAM of the ITM or ITC score; empty: by the grounding head, or without one
    # by ITM, else ITC
    method: Literal["", "itm", "itc"] = ""
    layer: Annotated[int, Range(-1, 1000)] = -1  # Grad-CAM: layer whose attention is explained; -1: the default

    @property
    def condition(self) -> str:
        return f"{self.ablate} ablated (baseline)" if self.ablate else ""

    def of_run(self, options: FinetuningOptions) -> Evaluation:
        """The evaluation of a run, whose image or text stays hidden if it was in training."""
        if not isinstance(options, GroundingOptions):
            return self
        return replace(
            self, ablate=self.ablate or options.ablate, true_regions=self.true_regions or options.true_regions
        )


EVALUATIONS: dict[str, type[Evaluation]] = {
    evaluation.task: evaluation for evaluation in (Retrieval, Captioning, VQA, Grounding, Matching, Classification)
}
"""The evaluation of each task, by the task's name."""

FINETUNED = {name: evaluation for name, evaluation in EVALUATIONS.items() if evaluation.untrained}
"""Those of the tasks that models are fine-tuned for."""


def evaluation_of(task: str, **values: Any) -> Evaluation:
    """The evaluation of a task with other values than its defaults. Raises ValueError for an unknown task."""
    if task not in EVALUATIONS:
        raise ValueError(f"task: expected one of {', '.join(EVALUATIONS)}, got {task!r}")
    return EVALUATIONS[task](**values)


def check_settings_of_task(task: str, names: Iterable[str], prefix: str = "") -> None:
    """Raises ValueError for a setting that only other tasks have. `prefix`: what a name is typed with."""
    settings_of = {name: {field.name for field in fields(evaluation)} for name, evaluation in EVALUATIONS.items()}
    for name in names:
        others = [other for other, known in settings_of.items() if name in known]
        if others and task not in others:
            raise ValueError(
                f"{prefix}{name} is a setting of {' and '.join(others)}, and the task is {task}: leave it out, or "
                f"evaluate on {others[0]}"
            )


def check_options_of_task(task: str, names: Iterable[str]) -> None:
    """Raises ValueError for a flag that only the fine-tuning for other tasks has. `names`: without dashes."""
    options_of = {name: {field.name for field in fields(evaluation.options)} for name, evaluation in FINETUNED.items()}
    for name in names:
        others = [other for other, known in options_of.items() if name in known]
        if others and task not in others:
            raise ValueError(f"--{name} is a setting of {' and '.join(others)}, and the task is {task}: leave it out")
