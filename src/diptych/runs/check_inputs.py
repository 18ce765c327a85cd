"""Checks before a run starts: inputs exist, settings fit each other, run folders are of this version.

Nothing here imports torch or reads more than file names and a run.json, so that a mistake is reported at once.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import diptych
from diptych.config.run import BOXES, Finetune, Pretrain
from diptych.config.tasks import EVALUATIONS
from diptych.data.sources.base import DataError
from diptych.data.webdataset.indexed_shards import shards
from diptych.utils.io import DamagedFile, read_json

UNREADABLE_VERSIONS = ("0.1",)
"""Versions (major.minor) whose run folders are refused."""


class RunError(Exception):
    """A run folder, or a run's settings, that cannot be used: the message says which, why and what to do."""


def check_inputs(run: Pretrain | Finetune, data_is_passed: bool = False) -> None:
    """Checks that data, initial runs and files of a run exist, that it has an objective, and that patches are whole.

    Args:
        data_is_passed: the data are passed from Python, so that `run.data` names no file.

    Raises:
        DataError: data or region features are missing.
        RunError: another input is missing, the run has no objective, or the image size is not a multiple of the patch
            size.
    """
    if isinstance(run, Pretrain) and not run.objectives.present():
        raise RunError(
            "no objective is left to train with: all are none; keep one of the recipe's, or add another, such as "
            "--objectives.itc default"
        )
    _check_patch_size(run)
    if not data_is_passed:
        check_data(run.data)
    initial_runs = [run.init_from]
    if isinstance(run, Pretrain):
        initial_runs += [run.init_image_from, run.visual_tokenizer]
        if run.init_text_from and not Path(run.init_text_from).is_file():
            raise RunError(f"{run.init_text_from}: no such file; check --init_text_from")
    for folder in filter(None, initial_runs):
        check_run_folder(Path(folder))
    if run.vocabulary and not Path(run.vocabulary).is_file():
        raise RunError(f"{run.vocabulary}: no such file; check --vocabulary")
    image = run.embedders.image
    if image not in ("own", "grid", *BOXES) and not Path(image).exists():
        raise DataError(f"{image}: no such file or folder; check --embedders.image")


def _check_patch_size(run: Pretrain | Finetune) -> None:
    """Raises RunError if the image size is not a multiple of the model's patch size."""
    patch, images = getattr(run.model, "patch_size", None), run.images
    side = "crop" if images.crop else "shorter_side" if images.square else "patch_size"
    if patch and run.embedders.image == "own" and getattr(images, side) % patch:
        raise RunError(
            f"images.{side} is {getattr(images, side)}, and the model's patches are of {patch} pixels: set "
            f"images.{side} to a multiple of that"
        )


def check_run_folder(folder: Path) -> None:
    """Raises RunError if a folder contains no run, or one of a version whose run folders this version does not read."""
    if not (folder / "run.json").is_file():
        raise RunError(f"{folder}: no run.json there; give the folder that --out named")
    with suppress(DamagedFile):  # reported when the whole file is read
        old = read_json(folder / "run.json", {"versions": {"diptych": str}})["versions"]["diptych"]
        new = diptych.__version__
        if ".".join(old.split(".")[:2]) in UNREADABLE_VERSIONS:
            raise RunError(
                f"{folder}: run folder of Diptych {old:.20}, which {new} does not read: train again with {new}, or "
                f"export its weights with {old:.20} (diptych export) and import them with {new} (diptych import)"
            )


def check_out(data: str, out: Path) -> None:
    """Raises RunError if a run cannot be written to `out`, or resumed there.

    It is the data folder, in which metrics.jsonl would be read as a table of captions, or a run folder of a refused
    version.
    """
    if Path(data).is_dir() and out.resolve() == Path(data).resolve():
        raise RunError(f"--out {out} is the folder of --data; give a folder for the run, such as --out {out / 'run'}")
    if (out / "run.json").is_file():
        check_run_folder(out)


def check_data(spec: str) -> None:
    """Raises DataError if the data that `--data` names does not exist."""
    if spec.endswith(".tar"):
        shards(spec)
    elif spec.partition(":")[0] == "scenes":
        from diptych.data.synthetic.source import size_named

        size_named(spec)
    elif not Path(spec).exists():
        raise DataError(f"{spec}: no such file or folder; check --data")


def task_of(folder: Path) -> str:
    """The task that the run in a folder is evaluated on by default: its own, or matching for pre-training.

    Raises RunError if there is no run, or its task has no evaluation.
    """
    check_run_folder(folder)
    try:
        record = read_json(folder / "run.json", {"kind": str, "run": {"task?": str}})
    except DamagedFile:
        return "matching"  # reported when it is read whole
    task = record["run"].get("task", "") if record["kind"] == "finetune" else "matching"
    if task not in EVALUATIONS:
        raise RunError(f"{folder} is a run of {task}, which has no evaluation: give --task, {' or '.join(EVALUATIONS)}")
    return task


def data_of(folder: Path) -> str:
    """Data of the run in a folder; "scenes" if run.json is damaged, which is reported when it is read whole."""
    check_run_folder(folder)
    try:
        return read_json(folder / "run.json", {"run": {"data?": str}})["run"].get("data", "scenes")
    except DamagedFile:
        return "scenes"
