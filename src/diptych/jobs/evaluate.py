"""Scoring a run on a task: metrics.json, per-sample predictions, and pictures of what was right and wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from diptych import keyed
from diptych.data.examples import PairExamples, QuestionExamples
from diptych.data.files import open_captions
from diptych.data.loader import sweep
from diptych.data.source import BadSample
from diptych.data.wordpiece import Tokenizer
from diptych.jobs import finetune, pretrain, report
from diptych.jobs.folder import RunError, load_run, read_run
from diptych.metrics.recall import recall
from diptych.metrics.vqa import normalise_answer, vqa_accuracy
from diptych.objectives.pretraining import Pretraining
from diptych.recipes.run import Evaluation, Finetune, Pretrain
from diptych.report import AnswerExample, RetrievalExample, Section
from diptych.tasks.retrieval import Retrieval, score_matrix
from diptych.tasks.vqa import ClosedVQA
from diptych.tokens import packing
from diptych.train.checkpoint import written_whole
from diptych.train.distributed import pick_device

SHOWN = 12  # examples in the report


@dataclass(frozen=True)
class Scored:
    """Metrics, one row per sample, and examples to look at."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    examples: list[Section]


def evaluate(folder: Path, asked: Evaluation) -> dict[str, float]:
    """Scores the run in `folder`; writes ``evaluate-TASK-SPLIT/`` in it and its report anew. Raises DataError, RunError."""
    run, facts = read_run(folder)
    module: nn.Module
    if isinstance(run, Pretrain):
        module = pretrain.build(run, facts, guided=False)
    else:
        module = finetune.build(run, facts["answers"])
    module = load_run(module, folder).to(pick_device(asked.device)).eval()
    scorers = {"retrieval": _retrieval, "vqa": _vqa, "matching": _matching}
    if asked.task not in scorers:
        raise RunError(f"there is no task {asked.task!r}; there are: {', '.join(scorers)}")
    bf16 = asked.precision == "bf16"
    with torch.no_grad(), packing(), torch.autocast(pick_device(asked.device).type, torch.bfloat16, enabled=bf16):
        scored = scorers[asked.task](module, run, facts, asked)
    out = folder / f"evaluate-{asked.task}-{asked.split}{'-control' if asked.control else ''}"
    _write(out, asked, scored)
    floors = getattr(module, "floors", {})
    pairs = None
    if isinstance(run, Pretrain) and isinstance(val := pretrain.val_examples(run), PairExamples):
        pairs = val
    report.write(folder, f"{folder.name}: {asked.task} on {asked.data}", module, floors, pairs, scored.examples)
    return scored.metrics


def _write(out: Path, asked: Evaluation, scored: Scored) -> None:
    out.mkdir(exist_ok=True)
    what = f"{asked.data}, split {asked.split}" + (
        ", captions dealt to other pictures (control)" if asked.control else ""
    )
    with written_whole(out / "metrics.json") as path:
        path.write_text(json.dumps({"what": what, "asked": vars(asked), "metrics": scored.metrics}, indent=1))
    with written_whole(out / "predictions.jsonl") as path:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scored.predictions))
    if asked.task == "vqa":  # the form that the VQA leaderboard takes
        rows = [{"question_id": row["question_id"], "answer": row["answer"]} for row in scored.predictions]
        with written_whole(out / f"vqa_{asked.split}_results.json") as path:
            path.write_text(json.dumps(rows))


def _retrieval(module: nn.Module, run: Pretrain | Finetune, facts: dict[str, Any], asked: Evaluation) -> Scored:
    """Every image with every caption of the gallery. A pre-training run scores by its matching head, log-odds of a match."""
    summary: Callable[[Tensor], Tensor]
    if isinstance(module, Retrieval):
        summary = module.rank
    elif isinstance(module, Pretraining) and "match" in module.heads:
        summary = lambda pooled: (logits := module.heads["match"](pooled))[:, 1] - logits[:, 0]  # noqa: E731
    else:
        raise RunError("retrieval needs a run with a matching or a ranking head")
    source = open_captions(asked.data, asked.split, least=run.images.shorter)
    tokenizer = Tokenizer(run.model.text_length)  # type: ignore[union-attr]
    pairs = PairExamples(source, tokenizer, run.images, matching=0.0)
    readable, images, bad = [], [], []
    for index in range(len(source)):
        if asked.gallery and len(readable) == asked.gallery:
            break
        try:
            images.append(pairs.load(int(pairs.owner.searchsorted(index)), 0, 0))
            readable.append(index)
        except BadSample as sample:
            bad.append(str(sample))
    captions = [source.captions(i)[: asked.captions or None] for i in readable]
    texts = [text for own in captions for text in own]
    owner = torch.arange(len(readable)).repeat_interleave(torch.tensor([len(own) for own in captions]))
    if asked.control:
        owner = owner[torch.from_numpy(keyed.permutation(asked.seed, 0, len(owner), "control"))]
        order = owner.argsort(stable=True)
    device = next(module.parameters()).device
    picture = pairs.collate(images, readable, 0, 0).to(device).image
    assert picture is not None
    rows = []
    for at in track(range(0, len(readable), 8), description="scoring pairs"):
        rows.append(score_matrix(module.model, summary, tokenizer.encode(texts).to(device), picture[at : at + 8]).cpu())  # type: ignore[arg-type]
    scores = torch.cat(rows).float()
    if asked.control:
        scores, texts, owner = scores[:, order], [texts[i] for i in order], owner[order]
    found = recall(scores, owner)
    metrics: dict[str, float] = {"images": found.images, "texts": found.texts, "skipped": len(bad)}
    for k in found.text_to_image:
        metrics[f"image to text R@{k}"] = found.image_to_text[k]
        metrics[f"image to text R@{k}, chance"] = found.chance_image_to_text[k]
        metrics[f"text to image R@{k}"] = found.text_to_image[k]
        metrics[f"text to image R@{k}, chance"] = found.chance_text_to_image[k]
    best = scores.topk(min(5, len(readable)), 0).indices.T.tolist()
    predictions = [
        {
            "text": text,
            "image": source.where(readable[int(own)]),
            "retrieved": [source.where(readable[i]) for i in first],
        }
        for text, own, first in zip(texts, owner, best, strict=True)
    ]
    shown: list[Section] = []
    for at in range(0, len(texts), max(1, len(texts) // SHOWN))[:SHOWN]:
        results = [(source.image(readable[i]), float(scores[i, at]), i == int(owner[at])) for i in best[at]]
        shown.append(RetrievalExample(texts[at], results))
    return Scored(metrics, predictions, shown)


def _vqa(module: nn.Module, run: Pretrain | Finetune, facts: dict[str, Any], asked: Evaluation) -> Scored:
    """The most probable answer of each question, by the official accuracy."""
    if not isinstance(module, ClosedVQA) or not isinstance(run, Finetune):
        raise RunError("vqa needs a run of `diptych finetune vqa`")
    answers = facts["answers"]
    source = finetune.questions(asked.data, asked.split, asked.blind or run.blind, run.images.shorter)
    food = QuestionExamples(source, Tokenizer(run.model.text_length), run.images, answers, normalise_answer)
    device = next(module.parameters()).device
    predictions, shown, scores, kinds, skipped = [], [], [], {}, 0
    total = -(-len(food) // 64)
    for loaded in track(sweep(food, 64, workers=asked.workers), total=total, description="answering"):
        skipped += len(loaded.skipped)
        probable = module.logits(loaded.batch.to(device)).sigmoid().topk(min(3, len(answers)), 1)
        for index, values, places in zip(
            loaded.batch.ids.tolist(), probable.values.tolist(), probable.indices.tolist(), strict=True
        ):
            question = source.question(index)
            guess = answers[places[0]]
            row = {"question_id": question.id, "question": question.text, "image": source.where(index), "answer": guess}
            if question.answers:
                score = vqa_accuracy(guess, question.answers)
                scores.append(score)
                kinds.setdefault(question.kind or "all", []).append(score)
                row |= {"truth": list(dict.fromkeys(question.answers)), "score": score}
                if index % max(1, len(food) // SHOWN) == 0:
                    best = [(answers[p], v) for p, v in zip(places, values, strict=True)]
                    truth = ", ".join(dict.fromkeys(question.answers))
                    shown.append(AnswerExample(source.image(question.image), question.text, best, truth, score))
            predictions.append(row)
    metrics: dict[str, float] = {"questions": len(predictions), "skipped": skipped}
    if scores:
        metrics["accuracy"] = sum(scores) / len(scores)
        if len(kinds) > 1:
            metrics |= {f"accuracy, {kind}": sum(s) / len(s) for kind, s in sorted(kinds.items())}
    return Scored(metrics, predictions, shown)


def _matching(module: nn.Module, run: Pretrain | Finetune, facts: dict[str, Any], asked: Evaluation) -> Scored:
    """A pre-training run's own losses and accuracies over the whole split."""
    if not isinstance(module, Pretraining) or not isinstance(run, Pretrain):
        raise RunError("matching needs a pre-training run")
    food = PairExamples(
        open_captions(asked.data, asked.split, least=run.images.shorter),
        Tokenizer(run.model.text_length),  # type: ignore[union-attr]
        run.images,
    )
    totals: dict[str, float] = {}
    counts: dict[str, float] = {}
    device = next(module.parameters()).device
    for loaded in track(
        sweep(food, 64, seed=asked.seed + 1, workers=asked.workers), total=-(-len(food) // 64), description="matching"
    ):
        batch = loaded.batch.to(device)
        count = module.counts(batch)
        for name, mean in module(batch, count).items():
            totals[name] = totals.get(name, 0.0) + float(mean * count[name])
            counts[name] = counts.get(name, 0.0) + float(count[name])
    return Scored({name: totals[name] / max(counts[name], 1.0) for name in totals} | {"pairs": len(food)}, [], [])
