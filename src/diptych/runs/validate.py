"""What is missing is told before anything slow is imported, built or read: nothing here reads more than names and a run.json."""

from __future__ import annotations

from pathlib import Path

from diptych.config.run import BOXES, Finetune, Pretrain
from diptych.data.sources.base import DataError
from diptych.data.webdataset.shards import shards
from diptych.utils.io import DamagedFile, read_json


class RunError(Exception):
    """A run folder that cannot be used as asked; the message says which, and what to do."""


def check_inputs(run: Pretrain | Finetune) -> None:
    """The data of a run, and the runs and files that it begins with, and pictures of whole patches. Raises DataError, RunError."""
    _whole_patches(run)
    check_data(run.data)
    begins = [run.init_from]
    if isinstance(run, Pretrain):
        begins += [run.init_image_from, run.tokenizer]
        if run.init_text_from and not Path(run.init_text_from).is_file():
            raise RunError(f"{run.init_text_from}: no such file; check --start_text")
    for start in filter(None, begins):
        check_run_folder(Path(start))
    if run.vocabulary and not Path(run.vocabulary).is_file():
        raise RunError(f"{run.vocabulary}: no such file; check --vocabulary")
    seen = run.embedders.image
    if seen not in ("own", "grid", *BOXES) and not Path(seen).exists():
        raise DataError(f"{seen}: no such file or folder; check --embedders.image")


def _whole_patches(run: Pretrain | Finetune) -> None:
    """Raises RunError where pictures come in sides that the model's patches do not fill."""
    patch, images = getattr(run.model, "patch_size", None), run.images
    side = "crop" if images.crop else "shorter_side" if images.square else "patch_size"
    if patch and run.embedders.image == "own" and getattr(images, side) % patch:
        raise RunError(
            f"images.{side} is {getattr(images, side)}, and the model's patches are of {patch} pixels: set images.{side} to a "
            "multiple of that"
        )


def check_run_folder(folder: Path) -> None:
    """Raises RunError where a folder holds no run."""
    if not (folder / "run.json").is_file():
        raise RunError(f"{folder}: no run.json there; give the folder that --out named")


def check_out_is_apart(data: str, out: Path) -> None:
    """Raises RunError where a run's folder is that of its data: a reader would take metrics.jsonl for a table of captions."""
    if Path(data).is_dir() and out.resolve() == Path(data).resolve():
        raise RunError(f"--out {out} is the folder of --data; give a folder for the run, such as --out {out / 'run'}")


def check_data(spec: str) -> None:
    """Raises DataError where what --data names is not there."""
    if spec.endswith(".tar"):
        shards(spec)
    elif spec.partition(":")[0] == "scenes":
        from diptych.data.synthetic.source import size_named

        size_named(spec)
    elif not Path(spec).exists():
        raise DataError(f"{spec}: no such file or folder; check --data")


def data_of(folder: Path) -> str:
    """What the run in a folder learned from; the built-in world where that cannot be read, which is told later."""
    check_run_folder(folder)
    try:
        return read_json(folder / "run.json", {"run": {"data?": str}})["run"].get("data", "scenes")
    except DamagedFile:
        return "scenes"
        return "scenes"
