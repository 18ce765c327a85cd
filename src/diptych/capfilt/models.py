"""Runs in their parts: one that writes captions, one that judges them, and what tells whether two images are one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.batch import Batch
from diptych.capfilt.shards import Opened
from diptych.config.capfilt import CapFilt
from diptych.config.data import ImageSettings
from diptych.config.run import Evaluation
from diptych.data.images.loading import ImageLoader, image_loader, shown_in
from diptych.data.loader import evaluation_loader
from diptych.data.regions.frozen_features import ExtractedFeatures, GridLoader
from diptych.data.sources.base import BadSample, Captioned
from diptych.generation import BeamConfig, GenerationConfig, beam_search, greedy, sample
from diptych.modules.heads import ITCHead
from diptych.modules.tokens import Tokens
from diptych.protocols import DualEncoder, FusionEncoder, TextDecoder
from diptych.runs.evaluate import restored
from diptych.runs.feature_extractors import frozen_cnn, memory_cache
from diptych.runs.run_folder import RunError, read_run
from diptych.runs.scoring.base import EvaluatedModel
from diptych.runs.scoring.retrieval import comparison
from diptych.runs.tokenizer import tokenizer_of
from diptych.tasks.retrieval import score_pairs
from diptych.utils.rng import uniform

SPEAK = {"lm", "masked_captions", "caption"}  # losses that teach to write
CNN_PICTURES = ImageSettings(shorter_side=224, square=True)


@dataclass(frozen=True)
class Readable:
    """Some pictures of a source as a run is shown them, those that cannot be read left out of their batch; `ids` are
    indices into the source.
    """

    source: Captioned
    indices: Sequence[int]
    shows: ImageLoader

    def __len__(self) -> int:
        return len(self.indices)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> tuple[int, Any] | None:
        try:
            return self.indices[index], self.shows.load(self.source, self.indices[index], None)
        except BadSample:
            return None

    def collate(self, loaded: list[tuple[int, Any] | None], ids: Sequence[int], seed: int, step: int) -> Batch:
        kept = [one for one in loaded if one is not None]
        batch = Batch(seed, step, torch.tensor([index for index, _ in kept], dtype=torch.long))
        return shown_in(batch, self.shows.stack([picture for _, picture in kept])) if kept else batch


def read(
    opened: Opened,
    shows: ImageSettings | ImageLoader,
    asked: CapFilt,
    device: torch.device,
    tick: Callable[[int], None],
) -> Iterator[tuple[list[int], Batch]]:
    """The pictures that can be read, some at a time, with their indices; `tick` is told of all."""
    food = Readable(opened.source, opened.images, image_loader(shows))
    for at, loaded in enumerate(evaluation_loader(food, asked.batch_size, workers=asked.workers)):
        batch = loaded.batch.to(device)
        if len(batch):
            yield batch.ids.tolist(), batch
        tick(min(asked.batch_size, len(food) - at * asked.batch_size))


def subject(folder: Path, asked: CapFilt, device: torch.device) -> EvaluatedModel:
    """The run in a folder, which must read pictures and texts. Raises RunError."""
    run, facts = read_run(folder)
    tokenizer_of(run)
    module = restored(folder, run, facts).to(device).eval()
    return EvaluatedModel(run, facts, module, Evaluation(device=asked.device, precision=asked.precision), device)


class Captioner:
    """A run that writes a caption of each picture. Raises RunError for one that never learned to."""

    def __init__(self, role: EvaluatedModel, asked: CapFilt):
        learned: Any = role.module
        if not isinstance(role.model, TextDecoder) or not SPEAK & set(learned.weights):
            raise RunError(
                f"the captioner is a {type(role.model).__name__} that never learned to write (it learned "
                f"{', '.join(learned.weights)}); give a run with the objective lm or captions"
            )
        self.role, self.asked, self.tokenizer = role, asked, tokenizer_of(role.run)
        known = self.tokenizer.vocabulary
        self.prompt = self.tokenizer.encode([asked.prompt]).ids[:, :-1].to(role.device)  # without the end
        longest = min(asked.max_length, self.tokenizer.max_length)
        if not self.prompt.shape[1] < longest:
            raise RunError(
                f"a prompt of {self.prompt.shape[1]} pieces leaves nothing of {longest}; give --max_length more"
            )
        repetition = asked.repetition_penalty if asked.sampling == "nucleus" else 1.0
        self.rules = GenerationConfig(known.sep, known.pad, longest, asked.min_length, repetition)

    def write(self, image: Tokens, unit: str, indices: Sequence[int]) -> list[str]:
        """A caption of each. What is drawn is keyed by (seed, unit, index), so that it is drawn again the same."""
        asked, model, rules = self.asked, self.role.model, self.rules
        prompt = self.prompt.expand(len(image), -1)
        if asked.sampling == "nucleus":
            drawn = uniform(asked.seed, 0, indices, f"caption of {unit}", rules.max_length)
            draws = torch.from_numpy(drawn).float().to(self.role.device)
            ids = sample(model, image, prompt, rules, draws, asked.top_p)
        elif asked.sampling == "beams":
            ids = beam_search(model, image, prompt, rules, BeamConfig(asked.num_beams)).ids
        else:
            ids = greedy(model, image, prompt, rules)
        return [self.tokenizer.decode(row).strip() for row in ids[:, self.prompt.shape[1] :].tolist()]


class Filter:
    """A run that judges texts beside pictures: by its matching head, by its contrast, by both where it learned both.

    Raises RunError for one that learned neither, or has contrast alone where no cosine was asked for.
    """

    def __init__(self, role: EvaluatedModel, asked: CapFilt):
        learned: Any = role.module
        self.role, self.tokenizer = role, tokenizer_of(role.run)
        self.match = (
            learned.heads["match"] if isinstance(role.model, FusionEncoder) and "itm" in learned.weights else None
        )
        self.compare = comparison(role)
        if self.match is None and self.compare is None:
            raise RunError(
                f"the filter is a {type(role.model).__name__} that never learned what belongs together (it learned "
                f"{', '.join(learned.weights)}); give a run with the objective itm or itc"
            )
        if self.match is None and asked.min_cosine <= -1:
            raise RunError("the filter has no matching head, only contrast; give --min_cosine, the cosine to be passed")

    def judge(self, image: Tokens, texts: list[str], owner: Tensor) -> list[dict[str, float]]:
        """The probability of a match and the cosine of each text beside the picture `owner` of the batch."""
        if not texts:
            return []
        text = self.role.model.encode_text(self.tokenizer.encode(texts).to(self.role.device))
        which, owner = torch.arange(len(texts), device=self.role.device), owner.to(self.role.device)
        scores: dict[str, list[float]] = {}
        if self.match is not None:
            match = self.match
            scores["match"] = score_pairs(
                self.role.model, lambda pooled: match(pooled).float().softmax(1)[:, 1], text, image, which, owner
            ).tolist()
        if self.compare is not None:
            cosines = self.compare.meet(self.compare.image(image), self.compare.text(text))
            scores["cosine"] = cosines.float()[owner, which].tolist()
        return [{name: values[i] for name, values in scores.items()} for i in range(len(texts))]


def readout(role: EvaluatedModel, image: Tokens) -> Float[Tensor, "b e"]:
    """A unit vector of each picture: its contrast's where that was learned, else the model's own readout, else the mean token."""
    model, learned = role.model, role.module
    if not isinstance(model, DualEncoder):
        return F.normalize(image.mean().float(), dim=-1)
    found = model.pooled_features(image)[0]
    head = learned.heads["contrast"] if hasattr(learned, "heads") and "contrast" in learned.heads else None  # type: ignore[operator,index]
    trained = "itc" in learned.weights or "retrieval" in learned.weights  # type: ignore[operator]
    if isinstance(head, ITCHead) and trained:
        return head.project_image(found).float()
    return F.normalize(found.float(), dim=-1)


def cnn_pictures() -> ImageLoader:
    """Pictures as a frozen CNN sees them. Raises ImportError without the extra `cnn`."""
    return GridLoader(ExtractedFeatures(frozen_cnn().extract, frozen_cnn().name, CNN_PICTURES, memory_cache()))


def cnn_readout(batch: Batch) -> Float[Tensor, "b e"]:
    """A unit vector of each picture: the mean of what the CNN sees in its cells."""
    assert batch.image is not None
    return F.normalize(batch.image.pixels.float().mean((2, 3)), dim=-1)
