import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from diptych.cli import main

sys.path.insert(0, str(Path(__file__).parent))  # for the tiny runs, which the tests share

from tiny_runs import EXACT, STEPS, TRAINING, finished, pretrain


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks for a trained run is slow."""
    for item in items:
        if {"pretrained", "vqa"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that tests start (`tiny_runs.ENVIRONMENT`), with which they are compared to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted, with dropout and one data worker."""
    out = tmp_path_factory.mktemp("runs") / "never-killed"
    said = finished(pretrain(out, "--workers", "1"))
    assert "0.0 M parameters" in said and "250 examples of scenes:50 (train)" in said and f"{STEPS} steps" in said
    assert said.splitlines()[-1].startswith(str(out / "report.html"))
    return out


@pytest.fixture(scope="session")
def vqa(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tuned for questions, and scored on what it was trained on."""
    out = tmp_path_factory.mktemp("runs") / "vqa"
    training = [*TRAINING, "--steps", "4", "--workers", "0"]
    assert main(["finetune", "vqa", "--from", str(pretrained), *training, "--out", str(out)]) == 0
    assert main(["evaluate", str(out), "--split", "train", "--workers", "0", *EXACT]) == 0
    return out
