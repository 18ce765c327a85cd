"""Classification on files in CIFAR-100's layout, initialisation from a classifier, and the systems' own recipes."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.cli import main
from diptych.config.data import HALF
from diptych.data.sources.labelled import CIFAR
from diptych.inference.folder import read_weights
from diptych.inference.saved_model import RunError, read_config
from diptych.models.configs import ALBEFConfig
from diptych.runs.finetune import build, inherited, init_from_pretrained
from diptych.runs.recipes import recipe
from diptych.tasks.definition import Labels, fine_tuning
from tests.runs.tiny_runs import write_model

TINY = (
    "--model.image_sizes 8 12 --model.patch_sizes 4 6 --model.dims 16 16 --model.num_heads 2 2 --model.mlp_dims 32 32 "
    "--images.augment False"
)
EXACT = "--workers 0 --device cpu --precision fp32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes of grey, from dark to light, in CIFAR-100's layout."""
    folder, draw = tmp_path_factory.mktemp("grey"), np.random.default_rng(0)
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"dark", b"grey", b"light"]}, protocol=2))
    for name, n in (("train", 90), ("test", 30)):
        labels = [i % 3 for i in range(n)]
        data = (draw.integers(0, 20, (n, 3072)) + 110 * np.array(labels)[:, None]).astype(np.uint8)
        (folder / name).write_bytes(pickle.dumps({b"data": data, b"fine_labels": labels}, protocol=2))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_crossvit_is_fine_tuned_and_evaluated_and_initialises_another_classifier(
    folder: Path, tmp_path: Path, seed: int
):
    out = tmp_path / "run"
    words = (
        f"finetune crossvit.small --data {folder} --out {out} {TINY} --steps 60 --batch_size 16 {EXACT} --seed {seed}"
    )
    assert main([*words.split(), "--optimizer.learning_rate", "0.003"]) == 0
    assert main(["evaluate", str(out), "--split", "test", *EXACT.split()]) == 0
    (scores,) = out.glob("evaluate-classification-*-test-fp32")
    metrics = json.loads((scores / "metrics.json").read_text())["metrics"]
    assert metrics["accuracy"] > 0.9 and metrics["accuracy at 3"] == 1.0 and metrics["images"] == 30
    rows = [json.loads(line) for line in (scores / "predictions.jsonl").read_text().splitlines()]
    source = CIFAR(folder, "test")
    assert [row["truth"] for row in rows] == [source.classes[source.label(row["index"])] for row in rows]
    assert read_config(out).labels == ("dark", "grey", "light")

    other = inherited(out, replace(recipe("crossvit.small", "Finetune"), recipe=""))
    module = build(other, Labels(("cat", "dog")))
    init_from_pretrained(module, out, other.model, fine_tuning("classification"))
    state, trained = module.state_dict(), read_weights(out)
    assert state["model.head.0.weight"].shape[0] == 2 and trained["model.head.0.weight"].shape[0] == 3
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items() if ".head." not in name)
    with pytest.raises(RunError, match="CrossViT; vqa needs a model that reads text and image"):
        inherited(out, replace(other, task="vqa"))


def test_a_system_s_own_recipe_fine_tunes_at_its_larger_image_size(tmp_path: Path):
    own, before = recipe("albef.vqa", "Finetune"), recipe("albef.pretrain_4m")
    model = ALBEFConfig(8, 1, 2, 16, 16, (2, 2), 8, 1, 1, 2, 16, 114, 24, 4)
    before = replace(before, model=model, images=replace(before.images, shorter_side=32, mean=HALF, std=HALF))
    write_model(tmp_path, before, build(replace(own, model=model), Labels(("yes",))))
    run = inherited(tmp_path, replace(own, images=replace(own.images, shorter_side=48)), system_recipe=True)
    assert run.model == replace(model, grid=(3, 3)) and run.images.shorter_side == 48 and run.recipe == "albef.vqa"
    assert run.images.mean_std == (HALF, HALF), "the normalization of the pre-training run, not of the recipe"
    larger = build(run, Labels(("yes",)))
    init_from_pretrained(larger, tmp_path, run.model, fine_tuning("vqa"))
    trained = read_weights(tmp_path)
    assert all(
        torch.equal(p, trained[name])
        for name, p in larger.named_parameters()
        if name.startswith("model.") and name != "model.image.patches.position"
    )
    with pytest.raises(RunError, match=r"blip\.vqa is for a BLIP, but .* contains a ALBEF"):
        inherited(tmp_path, recipe("blip.vqa", "Finetune"), system_recipe=True)
