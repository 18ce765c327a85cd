"""A run exported and imported again is a run like any other.

It has the scores of the original run, initialises other runs, and writes and filters captions. A checkpoint that no
recipe expresses is an error with the reason.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diptych.capfilt.models import Captioner, Filter
from diptych.checkpoints.read import load_state_dict
from diptych.cli import main
from diptych.config.capfilt import CapFilt
from diptych.config.data import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, Embedders
from diptych.config.objectives import ITC, LM, MLM, MaskedCaptions, NoImage, Objectives
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import EVALUATIONS, GalleryEvaluation
from diptych.inference.saved_model import RunError, read_config
from diptych.models import common_recipes as tasks
from diptych.models.albef import recipes as albef
from diptych.models.beit3 import recipes as beit3
from diptych.models.blip import recipes as blip
from diptych.models.clip import recipes as clip
from diptych.models.coca import recipes as coca
from diptych.models.configs import (
    ALBEFConfig,
    BEiT3Config,
    BLIPConfig,
    CLIPConfig,
    CLIPResNetConfig,
    CoCaConfig,
    CrossViTConfig,
    MAEConfig,
    SCANConfig,
    ViLBERTConfig,
    ViLTConfig,
    ViTConfig,
    VLMoConfig,
    VSEppConfig,
)
from diptych.models.crossvit import recipes as crossvit
from diptych.models.mae import recipes as mae
from diptych.models.scan import recipes as scan
from diptych.models.vilbert import recipes as vilbert
from diptych.models.vilt import recipes as vilt
from diptych.models.vit import recipes as vit
from diptych.models.vlmo import recipes as vlmo
from diptych.models.vsepp import recipes as vsepp
from diptych.runs import build as building
from diptych.runs import finetune
from diptych.runs.evaluate import evaluate
from diptych.runs.load_model import load_model
from diptych.runs.matching import ACCURACY
from diptych.tasks.definition import Labels, fine_tuning
from diptych.utils.state_dict import named_weights
from tests.runs.tiny_runs import untrained, write_model

PIECES, GALLERY, FEATURES, DETECTED = 114, 4, 8, 5
ANSWERS = ["yes", "no", "two", "red"]
VIT: dict[str, Any] = {"dim": 64, "depth": 1, "num_heads": 1, "mlp_dim": 64, "patch_size": 16, "grid": (2, 2)}
TEXT: dict[str, Any] = {"vocab_size": PIECES, "text_length": 24}
TWO: dict[str, Any] = {
    "image_dim": 64,
    "image_depth": 1,
    "image_num_heads": 1,
    "image_mlp_dim": 64,
    "patch_size": 16,
    "grid": (2, 2),
}
OWN_TEXT: dict[str, Any] = {"text_dim": 64, "text_depth": 1, "text_num_heads": 1, "text_mlp_dim": 64, "embed_dim": 8}

V_ALBEF = ALBEFConfig(**TWO, **TEXT, dim=64, text_depth=1, fusion_depth=1, num_heads=1, mlp_dim=64, embed_dim=8)
V_BLIP = BLIPConfig(**{**TWO, **TEXT, "vocab_size": PIECES + 2}, dim=64, depth=1, num_heads=1, mlp_dim=64, bos_token_id=PIECES,
              enc_token_id=PIECES + 1, embed_dim=8)  # fmt: skip
V_BEIT3 = BEiT3Config(**VIT, **TEXT, mask_token_id=4, pooling="both")
V_VLMO = VLMoConfig(**{**VIT, "depth": 2}, **TEXT, vl_start_layer=1, relative_position=False, layer_scale=0.0)
V_VILT = ViLTConfig(**VIT, **TEXT)
V_COCA = CoCaConfig(**VIT, **TEXT, **OWN_TEXT, num_queries=3, decoder_depth=1, decoder_num_heads=1, decoder_mlp_dim=64)
V_VILBERT = ViLBERTConfig(
    dim=64, depth=2, num_heads=1, mlp_dim=64, image_dim=128, image_depth=2, image_num_heads=1, image_mlp_dim=64, coattention_dim=128,
    coattention_num_heads=1, schedule=((1, 1),), feature_dim=FEATURES, num_region_targets=DETECTED, **TEXT,
)  # fmt: skip
RESNET = CLIPResNetConfig(6, (1, 1, 1, 1), 4, (1, 1), 8, 1, 2, 12, PIECES, 24, 5)
V_CROSSVIT = CrossViTConfig(
    image_sizes=(8, 12),
    patch_sizes=(4, 6),
    dims=(32, 32),
    num_heads=(1, 1),
    mlp_dims=(32, 32),
    stages=((1, 1, 0),),
    num_classes=3,
)


@dataclass(frozen=True)
class Case:
    """A toy run, the system of its official file, the tasks to evaluate, and the settings that the file lacks."""

    run: Pretrain | Finetune
    system: str
    scored: tuple[str, ...] = ("matching", "retrieval")
    config: dict[str, Any] = field(default_factory=dict)
    normalisation: tuple[Any, Any] = (HALF, HALF)


def toy(run: Pretrain, model: Any, **changes: Any) -> Pretrain:
    images = (
        replace(run.images, shorter_side=32, patch_size=16, augment=False)
        if run.embedders.image == "own"
        else run.images
    )
    embed = run.embedders if run.embedders.image == "own" else Embedders("regions", feature_dim=FEATURES)
    training = replace(run.training, precision="fp32", device="cpu")
    made = replace(
        run, model=model, images=images, embedders=embed, data=f"scenes:{GALLERY}", training=training, init_scale=4.0
    )
    return replace(made, **changes)


def finetune_run(run: Pretrain, task: str) -> Finetune:
    return replace(tasks.finetuning(task, run), embedders=run.embedders, data=run.data)


CLIPS = (CLIP_MEAN, CLIP_STD)
ALBEFS, BLIPS = toy(albef.pretrain_4m(), V_ALBEF), toy(blip.pretrain_14m(), V_BLIP)
BEITS, VILTS, VLMOS = toy(beit3.base(), V_BEIT3), toy(vilt.base(), V_VILT), toy(vlmo.base_plus(), V_VLMO)
MASKED = {"special_ids": {"mask": 4}}
IMAGENETS = (IMAGENET_MEAN, IMAGENET_STD)
CASES = {
    "albef": Case(ALBEFS, "albef", normalisation=CLIPS),
    "albef, retrieval": Case(
        replace(ALBEFS, objectives=albef.retrieval().objectives, heads=("itc", "itm")), "albef", normalisation=CLIPS
    ),
    "albef, vqa": Case(
        finetune_run(replace(ALBEFS, model=replace(V_ALBEF, decoder_depth=1, embed_dim=256)), "vqa"), "albef", ("vqa",), normalisation=CLIPS
    ),
    "blip": Case(BLIPS, "blip", ("matching", "retrieval", "captioning"), normalisation=CLIPS),
    "blip, retrieval": Case(
        replace(BLIPS, model=replace(V_BLIP, variant="retrieval"), objectives=blip.retrieval().objectives), "blip", normalisation=CLIPS
    ),
    "blip, caption": Case(
        replace(BLIPS, model=replace(V_BLIP, variant="caption", embed_dim=256), objectives=Objectives(lm=LM(label_smoothing=0.1)), heads=()), "blip",
        ("matching", "captioning"), normalisation=CLIPS,
    ),
    "blip, vqa": Case(
        finetune_run(replace(BLIPS, model=replace(V_BLIP, variant="vqa", embed_dim=256)), "vqa"), "blip", ("vqa",), normalisation=CLIPS
    ),
    "clip": Case(toy(clip.base(), CLIPConfig(**VIT, **TEXT, **OWN_TEXT)), "clip", normalisation=CLIPS),
    "open_clip": Case(
        toy(clip.base(), CLIPConfig(**VIT, **TEXT, **OWN_TEXT, activation="gelu")), "open_clip", normalisation=CLIPS
    ),
    "clip_resnet": Case(
        toy(clip.base(), RESNET), "clip_resnet", config={"vision_heads": 4, "transformer_heads": 2}, normalisation=CLIPS
    ),
    "coca": Case(
        toy(coca.open_clip(), V_COCA), "coca", ("matching", "retrieval", "captioning"), normalisation=CLIPS
    ),
    "beit3, captioning": Case(
        replace(BEITS, model=replace(V_BEIT3, with_decoder=True), objectives=Objectives(masked_captions=MaskedCaptions(whole_words=False, label_smoothing=0.0))), "beit3",
        ("matching", "captioning"), MASKED,
    ),
    "beit3, retrieval": Case(replace(BEITS, objectives=Objectives(itc=ITC())), "beit3", config=MASKED),
    "beit3, vqa": Case(
        finetune_run(replace(BEITS, model=replace(V_BEIT3, pooling="image")), "vqa"), "beit3", ("vqa",), MASKED
    ),
    "beit3, classification": Case(
        finetune_run(replace(BEITS, model=replace(V_BEIT3, num_classes=3), images=replace(BEITS.images, mean=IMAGENET_MEAN, std=IMAGENET_STD)), "classification"),
        "beit3", ("classification",), MASKED, IMAGENETS,
    ),
    "vilt": Case(VILTS, "vilt"),
    "vilt, text only": Case(replace(VILTS, objectives=Objectives(mlm=MLM()), heads=("mlm",)), "vilt", ("matching",)),
    "vilt, vqa": Case(finetune_run(VILTS, "vqa"), "vilt", ("vqa",)),
    "vilt, retrieval": Case(finetune_run(VILTS, "retrieval"), "vilt", ("retrieval",)),
    "vlmo": Case(VLMOS, "vlmo"),
    "vlmo, before images": Case(
        replace(VLMOS, model=replace(V_VLMO, vl_start_layer=2), objectives=Objectives(mlm=MLM(image=NoImage())), heads=("mlm",)), "vlmo", ("matching",)
    ),
    "vlmo, one readout": Case(replace(VLMOS, model=replace(V_VLMO, num_itc_branches=1)), "vlmo"),
    "vlmo, retrieval": Case(
        replace(VLMOS, model=replace(V_VLMO, num_itc_branches=1), objectives=vlmo.retrieval().objectives, heads=("itc",)), "vlmo"
    ),
    "vlmo, vqa": Case(finetune_run(VLMOS, "vqa"), "vlmo", ("vqa",)),
    "vilbert": Case(toy(vilbert.pretrain(), V_VILBERT), "vilbert"),
    "vsepp": Case(toy(vsepp.flickr30k(), VSEppConfig(FEATURES, 16, PIECES, 8)), "vsepp"),
    "scan": Case(toy(scan.flickr30k(), SCANConfig(FEATURES, 16, PIECES, 8)), "scan"),
    "mae": Case(
        toy(mae.base(), MAEConfig(**VIT, decoder_dim=64, decoder_depth=1, decoder_num_heads=1, decoder_mlp_dim=64)), "mae", (),
        {"decoder_num_heads": 1}, IMAGENETS,
    ),
    "vit": Case(finetune_run(toy(vit.base(), ViTConfig(**VIT, num_classes=3)), "classification"), "vit", ("classification",)),
    "crossvit": Case(
        replace(crossvit.small(), model=V_CROSSVIT, images=replace(crossvit.small().images, shorter_side=8, mean=IMAGENET_MEAN, std=IMAGENET_STD)),
        "crossvit", ("classification",), normalisation=IMAGENETS,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with region features of each scene, grey images of three classes, answer and class lists."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diptych.runs.evaluate.report.write", lambda *_: None)  # pages are slow, and not tested here
    draw = np.random.default_rng(0)
    (tmp_path / "regions").mkdir()
    for i in range(GALLERY):
        features, probabilities = draw.normal(size=(3, FEATURES)), draw.dirichlet(np.ones(DETECTED), 3)
        corners = np.array([[0, 0, 1, 1, 1, 1], [0, 0, 0.5, 1, 0.5, 1], [0.2, 0.1, 0.7, 0.8, 0.5, 0.7]])
        np.savez(tmp_path / "regions" / f"{i}.npz", norm_bb=corners, features=features, soft_labels=probabilities)
    (tmp_path / "grey").mkdir()
    (tmp_path / "grey" / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"a", b"b", b"c"]}, protocol=2))
    for name, n in (("train", 12), ("test", 9)):
        content = {
            b"data": draw.integers(0, 256, (n, 3072)).astype(np.uint8),
            b"fine_labels": [i % 3 for i in range(n)],
        }
        (tmp_path / "grey" / name).write_bytes(pickle.dumps(content, protocol=2))
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b", "c"]))


def written(case: Case, folder: Path) -> Path:
    """The run's folder with random weights."""
    labels = {"vqa": ANSWERS, "classification": ["a", "b", "c"]}.get(getattr(case.run, "task", ""), [])
    torch.manual_seed(0)
    module = untrained(case.run, labels)
    with torch.no_grad():
        for p in named_weights(module).values():
            if p.is_floating_point() and p.dim() > 1:
                p.mul_(4)
    return write_model(folder, case.run, module, labels)


def imported(case: Case, before: Path, folder: Path) -> Path:
    """The run exported to the official layout and imported again, both at the command line."""
    assert main(["export", str(before), "--to", "official", "--out", "official.pth"]) == 0
    Path("config.json").write_text(json.dumps(case.config))
    words = [
        "import",
        case.system,
        "official.pth",
        "--out",
        str(folder),
        "--config",
        "config.json",
        "--regions",
        "regions",
    ]
    chosen = {"vqa": "answers.json", "classification": "classes.json"}.get(getattr(case.run, "task", ""))
    assert main([*words, *(["--answers", chosen] if chosen else [])]) == 0
    return folder


def scored(folder: Path, task: str) -> tuple[dict[str, float], list[str]]:
    data = "grey" if task == "classification" else f"scenes:{GALLERY}"
    split = "test" if task == "classification" else "train"
    settings: dict[str, Any] = dict(data=data, split=split, workers=0, device="cpu", precision="fp32")
    settings |= {"captions": 2} if issubclass(EVALUATIONS[task], GalleryEvaluation) else {}
    settings |= {"max_length": 8} if task == "captioning" else {}
    metrics = evaluate(folder, EVALUATIONS[task](**settings))
    (rows,) = folder.glob(f"evaluate-{task}-*/predictions.jsonl")
    return metrics, rows.read_text().splitlines()


def check_matching(before: Path, after: Path, itm: bool) -> None:
    """Checks that an imported model has the ITM accuracy of the run that it was exported from, and no loss of its own."""
    expected, _ = scored(before, "matching")
    assert (ACCURACY in expected) == itm and len(expected) > 4
    if itm:
        names = (ACCURACY, "pairs", "images", "skipped")
        assert scored(after, "matching")[0] == {name: expected[name] for name in names}
    else:
        with pytest.raises(RunError, match="an imported model with an ITM head"):
            scored(after, "matching")


@pytest.mark.quick("vit", "mae")
@pytest.mark.parametrize("name", CASES)
def test_an_imported_run_scores_as_the_exported_one(name: str, capsys: pytest.CaptureFixture[str]):
    case = CASES[name]
    before = written(case, Path("before"))
    after = imported(case, before, Path("after"))
    trained, loaded = (load_model(folder, torch.device("cpu")) for folder in (before, after))
    own, kept = trained.saved, loaded.saved
    assert (kept.model, kept.task, kept.labels) == (case.run.model, own.task, own.labels)
    assert kept.images.mean_std == case.normalisation == case.run.images.mean_std
    assert kept.imported and kept.imported.system == case.system and not own.imported
    actual, expected = (named_weights(one.module) for one in (loaded, trained))
    assert actual.keys() <= expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in actual.items())
    for task in case.scored:
        if task == "matching":
            check_matching(before, after, "itm" in own.losses)
        else:
            assert scored(after, task) == scored(before, task), task
    assert main(["export", str(after), "--to", "official", "--out", "again.pth"]) == 0
    first, again = (load_state_dict(Path(file)) for file in ("official.pth", "again.pth"))
    assert first.keys() == again.keys() and all(torch.equal(tensor, again[name]) for name, tensor in first.items())


@pytest.mark.slow
def test_mean_and_std_of_images_come_from_the_config(
    capsys: pytest.CaptureFixture[str],
):
    before = written(CASES["vit"], Path("before"))
    for config, expected in (
        ({"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}, IMAGENETS),  # timm: a DeiT
        ({"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}, CLIPS),  # Hugging Face
        ({"preprocess_cfg": {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)}}, CLIPS),  # open_clip
    ):
        saved = read_config(imported(replace(CASES["vit"], config=config), before, Path("after")))
        assert saved.images.mean_std == expected
    for config, message in (({"std": [0.2, 0.2, 0]}, "above 0"), ({"mean": 0.5}, "three numbers")):
        Path("config.json").write_text(json.dumps(config))
        assert main(["import", "vit", "official.pth", "--out", "x", "--config", "config.json"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_other_runs_are_initialised_from_an_imported_run():
    after = imported(CASES["albef"], written(CASES["albef"], Path("before")), Path("after"))
    weights = named_weights(load_model(after, torch.device("cpu")).module)
    module = building.build(replace(ALBEFS, init_from=str(after)))
    building.init_from_run(module, replace(ALBEFS, init_from=str(after)))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in named_weights(module).items())

    run = finetune.inherited(after, tasks.finetuning("vqa", vilt.base()))
    assert run.model == V_ALBEF and run.images.mean_std == CLIPS
    task = finetune.build(run, Labels(tuple(ANSWERS)))
    finetune.init_from_pretrained(task, after, run.model, fine_tuning("vqa"))
    assert all(torch.equal(t, weights[name]) for name, t in named_weights(task).items() if name.startswith("model."))


def test_an_imported_run_can_be_captioner_and_filter():
    after = imported(CASES["blip"], written(CASES["blip"], Path("before")), Path("after"))
    cfg = CapFilt(device="cpu", precision="fp32", workers=0)
    role = load_model(after, torch.device("cpu"))
    assert Captioner(role, cfg) and Filter(role, cfg).itm_head is not None


@pytest.mark.slow
def test_a_decoder_without_an_answer_list_generates_answers_and_ranks_those_of_a_file(
    capsys: pytest.CaptureFixture[str],
):
    case = CASES["albef, vqa"]
    before = written(case, Path("before"))
    assert main(["export", str(before), "--to", "official", "--out", "official.pth"]) == 0
    assert main(["import", "albef", "official.pth", "--out", "after"]) == 0
    capsys.readouterr()
    command = ["evaluate", "after", "--data", f"scenes:{GALLERY}", "--split", "train", "--workers", "0"]
    assert main([*command, "--score", "ranked"]) == 2
    assert "give --candidates FILE" in capsys.readouterr().err
    assert main(command) == 0
    Path("answers.json").write_text('["yes", "no"]')
    assert main([*command, "--score", "ranked", "--candidates", "answers.json"]) == 0
    with pytest.raises(RunError, match="give --answers open"):
        finetune.finetune(replace(case.run, init_from=""), Path("learned"))  # type: ignore[arg-type]


def test_clip_s_resnet_is_a_model_as_others():
    """No recipe has it, but an imported one has its heads and images, and is evaluated."""
    after = imported(CASES["clip_resnet"], written(CASES["clip_resnet"], Path("before")), Path("after"))
    saved = read_config(after)
    assert saved.model == RESNET and saved.heads == ("itc",) and saved.losses == ("itc",)
    assert (saved.images.shorter_side, saved.images.crop or 32, saved.images.patch_size) == (32, 32, 32)
    metrics, rows = scored(after, "retrieval")
    assert metrics["images"] == GALLERY and len(rows) == 2 * GALLERY
