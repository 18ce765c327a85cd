"""Checks before a run starts: inputs exist, settings fit each other, run folders are of this version.

Nothing here imports torch or reads more than file names and a run.json, so that a mistake is reported at once.
"""

from __future__ import annotations

from pathlib import Path

from diptych.config.data import BOXES, USUAL_LAYOUT, DataLayout, DataSettings
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import EVALUATIONS
from diptych.data.sources.base import DataError
from diptych.data.sources.paths import check_layout
from diptych.inference.saved_model import RunError, check_saved, read_config
from diptych.utils.io import DamagedFile, read_json


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
        check_data(run.data, run.layout)
    initial_runs = [run.init_from]
    if isinstance(run, Pretrain):
        initial_runs += [run.init_image_from, run.visual_tokenizer]
        if run.init_text_from and not Path(run.init_text_from).is_file():
            raise RunError(f"{run.init_text_from}: no such file; check --init_text_from")
    for folder in filter(None, initial_runs):
        check_saved(Path(folder))
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


def check_out(data: str, out: Path) -> None:
    """Raises RunError if a run cannot be written to `out`, or resumed there.

    It is the data folder, in which metrics.jsonl would be read as a table of captions, or a run folder of a refused
    version.
    """
    if Path(data).is_dir() and out.resolve() == Path(data).resolve():
        raise RunError(f"--out {out} is the folder of --data; give a folder for the run, such as --out {out / 'run'}")
    if (out / "run.json").is_file():
        check_saved(out)


def check_data(spec: str, layout: DataLayout = USUAL_LAYOUT) -> None:
    """Raises DataError if the data that `--data` names does not exist, or cannot have this layout."""
    check_layout(spec, layout)
    if spec.endswith(".tar"):
        from diptych.data.webdataset.indexed_shards import shards

        shards(spec)
    elif spec.partition(":")[0] == "scenes":
        from diptych.data.synthetic.source import size_named

        size_named(spec)
    elif not Path(spec).exists():
        raise DataError(f"{spec}: no such file or folder; check --data")


def task_of(folder: Path) -> str:
    """The task that the model in a folder is evaluated on by default: its own, or matching for pre-training.

    Raises RunError if there is no model, or its task has no evaluation.
    """
    task = read_config(folder).task
    task = "matching" if task == "pretraining" else task
    if task not in EVALUATIONS:
        raise RunError(
            f"{folder} is a model for {task}, which has no evaluation: give --task, {' or '.join(EVALUATIONS)}"
        )
    return task


def data_of(folder: Path) -> str:
    """Data that the model in a folder was trained on; "" if no run.json says so, "scenes" if that is damaged.

    That is reported when it is read whole.
    """
    check_saved(folder)
    if not (folder / "run.json").is_file():
        return ""
    try:
        return read_json(folder / "run.json", {"run": {"data?": str}})["run"].get("data", "scenes")
    except DamagedFile:
        return "scenes"


def layout_of(folder: Path, settings: DataSettings) -> dict[str, str]:
    """The column names and the folder of images of `settings`, or where these are empty those of the run in a folder."""
    kinds = {"columns?": str, "images_root?": str}
    recorded = read_json(folder / "run.json", {"run": kinds})["run"] if (folder / "run.json").is_file() else {}
    return {name: getattr(settings, name) or recorded.get(name, "") for name in ("columns", "images_root")}


def needed_data(folder: Path) -> str:
    """Data that the model in a folder was trained on. Raises RunError if they are not known."""
    if data := data_of(folder):
        return data
    raise RunError(f"{folder} has no run.json that names the data that it was trained on: give --data")
