"""Loaded models: what official checkpoints compute once loaded, and untrusted folders, which cost little."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diptych.api import VLM
from diptych.batch import Image, Regions, Text
from diptych.checkpoints.nested_state_dicts import split_by_modality
from diptych.checkpoints.read import WeightsError
from diptych.checkpoints.strict import load_strict
from diptych.config.objectives import ITM, Objectives
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.models.configs import ViLBERTConfig
from diptych.models.importing import ADAPTERS
from diptych.modules.tokens import Tokens
from diptych.protocols import DualEncoder, FusionEncoder, PartlySupported, student_of
from diptych.runs import build as building
from diptych.runs.import_checkpoint import import_checkpoint
from diptych.runs.load_model import load_model
from diptych.runs.recipes import recipe
from diptych.tasks.vqa import ClosedVQA
from tests.inference.tiny_folders import edit_json
from tests.models.other_sizes import Example
from tests.models.test_finetuning_recipes import labels_of, small, task_of
from tests.models.test_first_step import toy
from tests.models.test_other_sizes import EXAMPLES, random_state
from tests.runs.tiny_runs import write_model

CPU = torch.device("cpu")


def state_of(example: Example) -> dict[str, Tensor]:
    """The random weights of an example, with running variances that can be ones."""
    return {name: x.abs() if name.endswith("running_var") else x for name, x in random_state(example).items()}


def imported(example: Example, out: Path) -> Path:
    """The folder of a generated official checkpoint, imported."""
    official = ADAPTERS[example.system].names(example.arguments, example.task).to_official(state_of(example))
    file = out.parent / "checkpoint.pth"
    contiguous = {name: tensor.contiguous() for name, tensor in official.items()}
    torch.save({"model": split_by_modality(contiguous)}, file)
    (out.parent / "config.json").write_text(json.dumps(example.config))
    import_checkpoint(example.system, file, out, config=out.parent / "config.json")
    return out


def unsupported_by(model: object) -> Mapping[str, str]:
    return model.unsupported() if isinstance(model, PartlySupported) else {}


@torch.no_grad()
def outputs(loaded: LoadedModel) -> list[Tensor]:
    """Everything that the model computes from random images and texts, and its heads of the right widths."""
    model, size, draw = loaded.model, loaded.saved.model, torch.Generator().manual_seed(1)
    config: Any = size
    if hasattr(size, "feature_dim"):
        boxes = torch.rand(2, 4, 5, generator=draw)
        image: Any = Regions(torch.randn(2, 4, config.feature_dim, generator=draw), boxes, torch.ones(2, 4).bool())
    else:
        patch = getattr(size, "patch_size", 0)
        sides = config.image_sizes[:1] * 2 if hasattr(size, "image_sizes") else [side * patch for side in config.grid]
        image = Image.from_full(torch.randn(2, 3, *sides, generator=draw))
    if isinstance(size, ViLBERTConfig):
        image = image.with_whole_image()
    unsupported = unsupported_by(model)
    computed: list[Any] = []
    encoded: Any = None
    text: Any = None
    if hasattr(model, "encode_image"):
        encoded = model.encode_image(image)
        computed.append(encoded)
    if hasattr(model, "classify") and "classify" not in unsupported and getattr(size, "num_classes", 1):
        computed.append(model.classify(image))
    if hasattr(model, "encode_text") and "encode_text" not in unsupported:
        ids = torch.randint(5, config.vocab_size - 3, (2, 4), generator=draw)
        task = torch.zeros(2).long() if getattr(size, "num_tasks", 0) else None
        text = model.encode_text(Text(ids, torch.ones_like(ids).bool(), task=task))
        computed.append(text)
    if isinstance(model, DualEncoder) and "pooled_features" not in unsupported and text is not None:
        computed += [*model.pooled_features(encoded), *model.pooled_features(text)]
    one_image = getattr(size, "num_images", 1) == 1 and getattr(size, "variant", "") != "nlvr2"
    if isinstance(model, FusionEncoder) and "fuse" not in unsupported and one_image and text is not None:
        fused = model.fuse(text, encoded)
        computed.append(fused.pooled)
        computed += [head(fused.pooled) for name, head in loaded.heads.items() if name == "itm"]
        if isinstance(loaded.module, ClosedVQA):
            computed.append(loaded.module.head(fused.pooled))
    assert computed
    return [x.to_padded() if isinstance(x, Tokens) else x for x in computed]


@pytest.mark.quick("vit-*", "vilt-*", "clip*", "albef-vqa")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.system}-{example.task}")
@pytest.mark.slow
def test_an_imported_model_computes_the_same_loaded_saved_and_loaded_again(example: Example, tmp_path: Path):
    folder = imported(example, tmp_path / "imported")
    step = ADAPTERS[example.system].build(example.arguments, example.task, state_of(example))
    load_strict(step, state_of(example), example.system)
    first = load_model(folder, CPU)
    second = load_model(VLM(first).save(tmp_path / "saved"), CPU)
    official = replace(first, module=student_of(step).eval())
    for a, b, c in zip(outputs(official), outputs(first), outputs(second), strict=True):
        assert torch.equal(a, b) and torch.equal(b, c) and a.isfinite().all()


def untrusted(folder: Path, tmp_path: Path, path: str, value: Any, name: str) -> Path:
    copy = shutil.copytree(folder, tmp_path / name)
    edit_json(copy / "config.json", path, value)
    return copy


@pytest.mark.parametrize("name", ["", "a.b", "pop", "keys", "vqa"])
@pytest.mark.slow
def test_heads_of_any_name_among_an_imported_models_weights_are_loaded_or_refused(name: str, tmp_path: Path):
    example = next(one for one in EXAMPLES if (one.system, one.task) == ("vilbert", "tasks"))
    folder = imported(example, tmp_path / "imported")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, f"heads.{name}.answers.weight": torch.zeros(3, 4)}, folder / "model.safetensors")
    with pytest.raises((RunError, WeightsError)) as error:
        load_model(folder, CPU)
    assert "\n" not in str(error.value)


LIMITED = """
import resource, sys, time
from pathlib import Path
import torch
from diptych.inference.saved_model import RunError
from diptych.checkpoints.read import WeightsError
from diptych.checkpoints.strict import load_strict
from diptych.runs.load_model import load_model
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + (1 << 30),) * 2)
for folder in sys.argv[1:]:
    began = time.process_time()
    try:
        load_model(Path(folder), torch.device("cpu"))
    except (RunError, WeightsError) as error:
        assert "\\n" not in str(error) and len(str(error)) < 2000, folder
        print(Path(folder).name, time.process_time() - began, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc")
def test_an_untrusted_config_takes_little_time_and_memory(tmp_path: Path):
    """Sizes, heads and labels without bound are refused before anything of that size is allocated."""
    run = toy(recipe("vlmo.tiny"))
    folder = write_model(tmp_path / "run", run, building.build(run))
    # the head of masked regions, which this run does not have, would be of a size that no weight shows
    regions = toy(recipe("vilbert.pretrain"))
    regions = replace(
        regions, model=replace(regions.model, image_dim=128), heads=("itm",), objectives=Objectives(itm=ITM())
    )  # type: ignore[type-var]
    matching = write_model(tmp_path / "matching", regions, building.build(regions))
    vqa, _ = small(recipe("vilt.vqa", "Finetune"))
    answers = write_model(tmp_path / "answers", vqa, task_of(vqa), labels_of(vqa))
    many = [f"n{i}" for i in range(100_000)]
    cases = [
        (folder, "heads", many), (folder, "heads", ["itm", *many]), (folder, "heads", [f"itc{i}" for i in range(9999)]),
        (folder, "heads", ["a.b"]), (folder, "heads", ["pop"]), (folder, "heads", [""]),
        (folder, "model/vocab_size", 2_000_000), (folder, "model/dim", 65_536), (folder, "model/mlp_dim", 262_144),
        (folder, "model/grid", [512, 512]), (folder, "model/depth", 512), (folder, "model/text_length", 65_536),
        (matching, "model/num_region_targets", 1_000_000),
        (answers, "labels", many), (answers, "labels", many * 10), (answers, "labels", []),
    ]  # fmt: skip
    folders = [str(untrusted(one, tmp_path, *change, f"case{i}")) for i, (one, *change) in enumerate(cases)]
    done = subprocess.run([sys.executable, "-c", LIMITED, *folders], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    results = dict(line.split() for line in done.stdout.splitlines())
    assert list(results) == [Path(one).name for one in folders], "one of them was loaded"
    assert all(float(seconds) < 5 for seconds in results.values()), results
