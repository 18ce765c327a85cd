"""Does CapFilt help? Training on corrupted captions with and without it (BLIP, section 4.2 and table 1).

    python -m bench.capfilt --data flickr8k/ --captioner RUN --filter RUN --recipe albef.small --out capfilt/

Half of the training captions are swapped between images (`diptych corrupt-captions`), a captioner and a filter clean
them (`diptych capfilt`), and one recipe is trained on each set for the same number of steps: the corrupted one
("noised"), the cleaned one ("bootstrapped"), and the clean one, as the upper bound. All are evaluated on the same
held-out photos.

The captioner and the filter must not be trained on the corrupted images. --human 1000 leaves the first 1,000 out of
the corrupted set and writes them, clean, to OUT/human; train the two runs on them first (BLIP fine-tunes them on
COCO):

    diptych corrupt-captions flickr8k/ --fraction 0 --last 1000 --out capfilt/human
    diptych pretrain blip.small --data "capfilt/human/train-*.tar" --out capfilt/blip

They are also part of every arm's training data, as in the paper; an arm of their own shows what they contribute.

Every stage is resumed where it stopped; unfinished rows read "not run".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, pstdev

from diptych.capfilt.corrupt_captions import TRUTH, corrupt_captions
from diptych.capfilt.run import capfilt
from diptych.config.capfilt import CapFilt, CorruptCaptions
from diptych.config.tasks import Retrieval
from diptych.runs.evaluate import evaluate
from diptych.runs.pretrain import pretrain
from diptych.runs.recipes import recipe
from diptych.training.checkpoint import check_same_settings

ARMS = ("human alone", "noised", "bootstrapped", "clean")
MEASURES = ("image to text R@1", "image to text R@10", "text to image R@1", "text to image R@10")


@dataclass(frozen=True)
class Study:
    """The command-line settings."""

    data: str
    out: Path
    captioner: str
    filter: str
    recipe: str
    fraction: float
    human: int
    steps: int
    seeds: Sequence[int]
    min_itm: float
    rerank: int
    limit: int
    device: str


def main() -> None:
    study = parse_arguments()
    check_unchanged(study)
    write_sets(study)
    results = {"tool": filter_quality(study, cleaned(study)) if study.captioner or study.filter else {}}
    table: dict[str, dict[str, list[float]]] = {}
    for arm in ARMS:
        for seed in study.seeds:
            for name, value in scores(study, arm, seed).items():
                table.setdefault(arm, {}).setdefault(name, []).append(value)
        show(study, table)
    (study.out / "capfilt.json").write_text(json.dumps(results | {"scores": table}, indent=1))


def parse_arguments() -> Study:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="captioned photographs with train and val splits")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--captioner", default="", help="a run folder")
    parser.add_argument("--filter", default="", help="a run folder")
    parser.add_argument("--recipe", default="albef.small", help="what is trained on each set")
    parser.add_argument("--fraction", type=float, default=0.5, help="fraction of the captions to swap")
    parser.add_argument("--human", type=int, default=1000, help="images kept clean, for the captioner and the filter")
    parser.add_argument("--steps", type=int, default=0, help="of each run; 0: the recipe's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--min_itm", type=float, default=0.5)
    parser.add_argument("--rerank", type=int, default=16, help="re-ranked by ITM; 0: contrastive retrieval alone")
    parser.add_argument("--limit", type=int, default=0, help="images to corrupt; 0: all")
    parser.add_argument("--device", default="auto")
    return Study(**vars(parser.parse_args()))


def check_unchanged(study: Study) -> None:
    """Records the settings of the sets in the folder. Raises CheckpointError if they were made with others."""
    settings = {name: value for name, value in asdict(study).items() if name in ("data", "fraction", "human", "limit")}
    path = study.out / "study.json"
    if path.is_file():
        check_same_settings(study.out, json.loads(path.read_text()), settings)
    study.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1))


def write_sets(study: Study) -> None:
    """Writes the human set, the clean set, and the corrupted set with its truth."""
    last = study.human + study.limit if study.limit else 0
    plain = CorruptCaptions(data=study.data, first=study.human, last=last)
    human = replace(plain, first=0, last=study.human, fraction=0.0)
    made = {"clean": replace(plain, fraction=0.0), "noised": replace(plain, fraction=study.fraction)}
    for name, one in (made | ({"human": human} if study.human else {})).items():
        if not (study.out / name / TRUTH).is_file():
            swapped, captions = corrupt_captions(one, study.out / name)
            print(f"{name}: {swapped:,} of {captions:,} captions are of other images")


def cleaned(study: Study) -> Path:
    """The folder of the corrupted set after CapFilt."""
    out = study.out / "bootstrapped"
    noised = str(study.out / "noised" / "train-*.tar")
    capfilt(
        CapFilt(
            noised, study.captioner, study.filter, min_itm=study.min_itm, against=study.data, against_split="val",
            workers=0, device=study.device,
        ),
        out,
    )  # fmt: skip
    return out


def filter_quality(study: Study, out: Path) -> dict[str, float]:
    """Precision and recall of the filter against the truth."""
    truth = {
        (row["key"], row["caption"]): row["is_original"]
        for row in map(json.loads, (study.out / "noised" / TRUTH).read_text().splitlines())
    }
    rows = [json.loads(row) for row in (out / "decisions.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = [(truth[r["key"], r["caption"]], r["decision"] == "kept") for r in rows if r["decision"] != "skipped"]
    right, kept, own = sum(a and b for a, b in pairs), sum(b for _, b in pairs), sum(a for a, _ in pairs)
    quality = {
        "captions that are their image's, before": own / len(pairs),
        "precision: of those kept": right / max(kept, 1),
        "recall: kept of those": right / max(own, 1),
        "noise that is gone": 1 - (kept - right) / max(len(pairs) - own, 1),
    }
    for name, value in quality.items():
        print(f"{name:42} {value:.1%}")
    return quality


def scores(study: Study, arm: str, seed: int) -> dict[str, float]:
    """Retrieval metrics on val of a run trained on an arm's tars and the human set."""
    if (arm == "bootstrapped" and not (study.captioner or study.filter)) or (arm == "human alone" and not study.human):
        return {}
    folders = [arm.removesuffix(" alone"), *(["human"] if study.human and arm != "human alone" else [])]
    out, run = study.out / f"run-{folders[0]}-{seed}", recipe(study.recipe)
    data = str(study.out / (folders[0] if len(folders) == 1 else f"{{{','.join(folders)}}}") / "train-*.tar")
    training = replace(run.training, seed=seed, device=study.device, steps=study.steps or run.training.steps)
    pretrain(replace(run, data=data, training=training), out)
    task = Retrieval(data=study.data, split="val", rerank=study.rerank, device=study.device, workers=0)
    metrics = evaluate(out, task)
    return {name: metrics[name] for name in MEASURES}


def show(study: Study, table: dict[str, dict[str, list[float]]]) -> None:
    """The table so far: means over seeds, and their spread."""
    print(f"| trained on | {' | '.join(MEASURES)} |\n|---|{'---:|' * len(MEASURES)}")
    for arm in ARMS:
        cells = [
            f"{100 * mean(v):.1f} ± {100 * pstdev(v):.1f}" if (v := table.get(arm, {}).get(name)) else "not run"
            for name in MEASURES
        ]
        print(f"| {arm} | {' | '.join(cells)} |")
    print(f"{study.recipe}, {len(study.seeds)} seeds; val of {study.data}")


if __name__ == "__main__":
    main()
