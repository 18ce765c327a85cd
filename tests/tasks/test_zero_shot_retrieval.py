"""Zero-shot retrieval: pre-training runs of every system are scored by the rule of its paper (docs/retrieval.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from diptych.batch import Regions
from diptych.config import tasks
from diptych.data.images.loading import ImageSource, Random
from diptych.data.loader import SkipCounter
from diptych.inference.embedders import reads_regions
from diptych.inference.loaded_model import LoadedModel
from diptych.runs.pretrain import build
from diptych.runs.recipes import recipe
from diptych.tasks.common import encode_images
from diptych.tasks.gallery import GalleryImages, open_gallery, readable_gallery
from diptych.tasks.pair_scores import dual_encoder_scorer
from diptych.tasks.retrieval import evaluate
from tests.models.test_first_step import FEATURE_DIM, toy
from tests.runs.tiny_runs import loaded_from

CONFIG = tasks.Retrieval(
    data="scenes:50",
    split="train",
    gallery=4,
    captions=2,
    rerank=2,
    workers=0,
    device="cpu",
    precision="fp32",
)
SCENES_VOCABULARY = 114
FUSION = ("vilbert.small", "vilt.small", "visualbert.small")
SIMILARITY = ("beit3.small", "coca.small", "scan.small", "vsepp.small")
RERANKED = ("albef.small", "vlmo.small")


class RandomRegions:
    """An image loader of random regions, the same for the same image, with a region for the whole image if `whole`."""

    def __init__(self, whole: bool):
        self.whole = whole

    def load(self, source: ImageSource, index: int, random: Random | None) -> torch.Tensor:
        return torch.randn(3, FEATURE_DIM, generator=torch.Generator().manual_seed(index))

    def stack(self, loaded: Sequence[torch.Tensor]) -> Regions:
        boxes, mask = torch.zeros(len(loaded), 3, 5), torch.ones(len(loaded), 3, dtype=torch.bool)
        regions = Regions(torch.stack(list(loaded)), boxes, mask)
        return regions.with_whole_image() if self.whole else regions


def pretrained(name: str, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A toy model of a recipe with perturbed weights, so that pairs have different scores."""
    torch.manual_seed(0)
    run = toy(recipe(name))
    run = replace(run, data="scenes:50", model=replace(run.model, vocab_size=SCENES_VOCABULARY))  # type: ignore[call-arg]
    if reads_regions(run):
        whole = not name.startswith(("scan", "vsepp", "visualbert"))
        monkeypatch.setattr("diptych.inference.loaded_model.image_input", lambda run: RandomRegions(whole))
    module = build(run).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return loaded_from(run, module)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FUSION, *SIMILARITY, *RERANKED])
def test_a_pretraining_run_is_scored_by_the_rule_of_its_paper(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    loaded = pretrained(name, monkeypatch)
    with torch.no_grad():
        metrics = evaluate(loaded, CONFIG).metrics
    printed = capsys.readouterr().out
    assert ("scoring 32 pairs of 4 images and 8 texts by fusion" in printed) is (name in FUSION)
    assert ("image to text R@1, before re-ranking" in metrics) is (name in RERANKED)
    assert (metrics["images"], metrics["texts"]) == (4, 8) and metrics["text to image R@5"] == 1
    assert (dual_encoder_scorer(loaded) is None) is (name in FUSION)


@pytest.mark.parametrize("name", FUSION)
def test_zero_shot_by_itm_ranks_pairs_as_their_probability_of_a_match(name: str, monkeypatch: pytest.MonkeyPatch):
    loaded = pretrained(name, monkeypatch)
    with torch.no_grad():
        predictions = evaluate(loaded, CONFIG).predictions
        pairs = readable_gallery(open_gallery(CONFIG, 80), SkipCounter(0.0))
        examples = GalleryImages(pairs.source, loaded.image_input)
        batch = examples.collate([examples.load(i, 0, 0) for i in range(4)], range(4), 0, 0)
        text = loaded.model.encode_text(loaded.tokenizer.encode(pairs.texts))
        index = torch.arange(32)
        image = encode_images(loaded.model, batch).index_samples(index % 4)
        logits = dict(loaded.heads.items())["itm"](loaded.model.fuse(text.index_samples(index // 4), image).pooled)
    order = logits.softmax(1)[:, 1].view(8, 4).argsort(1, descending=True)
    where = [[pairs.source.where(int(i)) for i in row] for row in order]
    assert [row["retrieved"] for row in predictions] == where
