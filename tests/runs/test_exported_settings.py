"""Settings that weight shapes do not show survive export and import, for random models of every system."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diptych.batch import Image, Regions, Text
from diptych.checkpoints.nested_state_dicts import split_by_modality
from diptych.cli import main
from diptych.config.validation import Activation
from diptych.inference.saved_model import SavedModel, read_config
from diptych.models.importing import ADAPTERS
from diptych.runs.exported_settings import METADATA, settings_file
from diptych.runs.load_model import load_model
from tests.models.test_other_sizes import EXAMPLES, Example, random_state

CHOICES: dict[str, tuple[Any, ...]] = {
    "direction": ("text", "image"),
    "norm": ("clipped_l2", "l2", "softmax", "clipped", "none"),
    "aggregate": ("logsumexp", "mean", "max", "sum"),
    "measure": ("order", "cosine"),
    "text_activation": ("", *get_args(Activation)),
}
"""Settings that are one of several words."""


def random_settings(example: Example, draw: random.Random) -> dict[str, Any]:
    """The example's arguments with random values of every setting that its weights' names and shapes do not show."""
    adapter = ADAPTERS[example.system]
    settings = vars(adapter.config_class(**example.arguments)).copy()
    for name, value in settings.items():
        if name in CHOICES:
            settings[name] = draw.choice(CHOICES[name])
        elif name.endswith("activation"):
            settings[name] = draw.choice(get_args(Activation))
        elif name.endswith("eps"):
            settings[name] = draw.choice((1e-12, 1e-6, 1e-3, 0.1))
        elif name.endswith("dropout") or name == "drop_path" or (name == "layer_scale" and value):
            settings[name] = draw.choice((0.05, 0.25, 0.5))
        elif name.startswith("lambda_"):
            settings[name] = draw.choice((2.0, 5.5, 20.0))
        elif name.endswith("token_id"):
            settings[name] = draw.randrange(settings["vocab_size"])
        elif name.endswith("heads") and isinstance(value, int) and not settings.get("relative_position"):
            settings[name] = draw.choice([n for n in range(1, value + 1) if value % n == 0])
    return settings


def written(example: Example, settings: dict[str, Any], folder: Path) -> Path:
    """A run of the model, imported at the command line with all its settings."""
    folder.mkdir()
    random_example = Example(example.system, example.task, settings, {}, example.heads)
    state = random_state(random_example)
    state = {name: x.abs() if name.endswith("running_var") else x for name, x in state.items()}
    official = ADAPTERS[example.system].names(settings, example.task).to_official(state)
    torch.save({"model": split_by_modality({n: t.contiguous() for n, t in official.items()})}, folder / "official.pth")
    config: dict[str, Any] = {"arguments": settings}
    if "feature_dim" not in settings and example.system != "clip_resnet":
        config |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (folder / "config.json").write_text(json.dumps(config))
    return imported(example.system, folder / "official.pth", folder / "run", "--config", str(folder / "config.json"))


def imported(system: str, checkpoint: Path, out: Path, *more: str) -> Path:
    assert main(["import", system, str(checkpoint), "--out", str(out), *more]) == 0
    return out


def exported(run: Path, to: str, out: Path) -> Path:
    assert main(["export", str(run), "--to", to, "--out", str(out)]) == 0
    return out


def beside_its_file(folder: Path) -> SavedModel:
    """The config of an imported model, without the name of its file and the notes on it."""
    saved = read_config(folder)
    assert saved.imported is not None
    return replace(saved, imported=replace(saved.imported, checkpoint="", notes=()))


@torch.no_grad()
def outputs(folder: Path) -> list[torch.Tensor]:
    """What the model in a folder computes from random images and texts."""
    loaded = load_model(folder, torch.device("cpu"))
    model: Any = loaded.model
    torch.manual_seed(1)
    size: Any = loaded.saved.model
    if hasattr(size, "feature_dim"):
        image: Any = Regions(
            torch.randn(3, 4, size.feature_dim), torch.rand(3, 4, 5), torch.ones(3, 4).bool()
        ).with_whole_image()
    elif hasattr(size, "image_sizes"):
        image = Image.from_full(torch.randn(3, 3, size.image_sizes[0], size.image_sizes[0]))
    else:
        patch = getattr(size, "patch_size", 0)
        image = Image.from_full(torch.randn(3, 3, *(side * patch for side in size.grid)))
    computed = [model.encode_image(image).to_padded()] if hasattr(model, "encode_image") else [model.classify(image)]
    if hasattr(size, "vocab_size") and getattr(size, "variant", "") != "caption":
        ids = torch.randint(size.vocab_size, (3, 4))
        task = torch.tensor([0, 1, 3]) if getattr(size, "num_tasks", 0) else None
        text = Text(ids, torch.ones_like(ids, dtype=torch.bool), task=task)
        computed.append(model.encode_text(text).to_padded())
        if hasattr(model, "similarity") and hasattr(size, "feature_dim"):
            computed.append(model(image, text))
    return computed


IDS = [f"{i}-{example.system}-{example.task}" for i, example in enumerate(EXAMPLES)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "to"),  # every example in one of the two layouts
    [(example, ("official", "safetensors")[i % 2]) for i, example in enumerate(EXAMPLES)],
    ids=IDS,
)
def test_a_random_model_of_every_system_comes_back_with_its_settings(example: Example, to: str, tmp_path: Path):
    draw = random.Random(f"{example} {to}")
    before = written(example, random_settings(example, draw), tmp_path / "before")
    file = exported(before, to, tmp_path / ("x.pth" if to == "official" else "x.safetensors"))
    after = imported(example.system, file, tmp_path / "after")
    assert beside_its_file(before) == beside_its_file(after)
    weights_a, weights_b = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert weights_a.keys() == weights_b.keys()
    assert all(torch.equal(tensor, weights_b[name]) for name, tensor in weights_a.items())
    for x, y in zip(outputs(before), outputs(after), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def scan(tmp_path: Path) -> Path:
    """A SCAN with settings other than those that an import of its weights alone assumes."""
    example = next(example for example in EXAMPLES if example.system == "scan")
    settings = example.arguments | {"direction": "image", "lambda_softmax": 4.0}
    return written(example, settings, tmp_path / "before")


def test_export_names_the_settings_that_the_weights_do_not_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The file itself has the official layout; without the settings beside it, import assumes others."""
    run = scan(tmp_path)
    capsys.readouterr()
    file = exported(run, "official", tmp_path / "x.pth")
    line = f"in {settings_file(file)}, which diptych import reads: direction image, lambda_softmax 4.0\n"
    assert line in capsys.readouterr().out
    assert list(torch.load(file, weights_only=True)) == ["model"]
    settings_file(file).unlink()
    plain: Any = read_config(imported("scan", file, tmp_path / "plain")).model
    assert plain.direction == "text"


@pytest.mark.parametrize("to", ["official", "safetensors"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arguments": {"direction": "sideways"}}, "arguments.direction must be one of 'text', 'image'"),
        ({"arguments": {"lambda_softmax": -1.0}}, "arguments.lambda_softmax must be in"),
        ({"arguments": {"directoin": "image"}}, "the model has no such setting; did you mean direction?"),
        ({"arguments": {"dim": 9}}, "arguments.dim is 9, but in the weights it is 10"),
        ({"arguments": [1]}, "expected an object of names and values"),
        ({"invented": 1}, "invented is no key of a config that diptych export writes"),
    ],
)
def test_exported_settings_are_read_strictly(
    to: str, changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = exported(scan(tmp_path), to, tmp_path / ("x.pth" if to == "official" else "x.safetensors"))
    if to == "official":
        settings_file(file).write_text(json.dumps(json.loads(settings_file(file).read_text()) | changes))
    else:
        with safe_open(file, "pt") as opened:
            settings = json.loads(opened.metadata()[METADATA]) | changes
        save_file(load_file(file), file, {METADATA: json.dumps(settings)})
    assert main(["import", "scan", str(file), "--out", str(tmp_path / "after")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and str(file) in line and not (tmp_path / "after").exists()


def test_a_config_at_the_command_line_replaces_exported_settings(tmp_path: Path):
    file = exported(scan(tmp_path), "official", tmp_path / "x.pth")
    (tmp_path / "own.json").write_text(json.dumps({"cross_attn": "i2t", "lambda_softmax": 7.0}))
    after = imported("scan", file, tmp_path / "after", "--config", str(tmp_path / "own.json"))
    model: Any = read_config(after).model
    assert (model.direction, model.lambda_softmax) == ("image", 7.0)


ALBEF = next(x for x in EXAMPLES if (x.system, x.task) == ("albef", "pretraining"))
SEVEN = {"dim": 14, "num_heads": 7, "image_dim": 21, "image_num_heads": 3}


def error_line(system: str, file: Path, config: dict[str, Any], tmp_path: Path, capsys: Any, *more: str) -> str:
    """The line that a refused import prints."""
    capsys.readouterr()
    (tmp_path / "c.json").write_text(json.dumps(config))
    command = ["import", system, str(file), "--out", str(tmp_path / "no"), "--config", str(tmp_path / "c.json"), *more]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_two_numbers_of_heads_are_given_as_constructor_arguments(tmp_path: Path, capsys: Any):
    """They apply before inference, which could not infer them; the error tells what to write, and that works."""
    run = written(ALBEF, ALBEF.arguments | SEVEN | {"grid": (3, 3)}, tmp_path / "before")
    file = exported(run, "official", tmp_path / "x.pth")
    settings_file(file).unlink()
    line = error_line("albef", file, {}, tmp_path, capsys)
    assert "image_num_heads cannot be inferred: width 21 is not a multiple of 64; state it in --config" in line
    advice: dict[str, Any] = {"arguments": {"image_num_heads": 3}}
    line = error_line("albef", file, advice, tmp_path, capsys)
    assert '{"arguments": {"num_heads": N}}' in line
    advice["arguments"]["num_heads"] = 7
    line = error_line("albef", file, advice, tmp_path, capsys, "--num_heads", "5")
    assert "the config states image_num_heads 3, num_heads 7, but --num_heads is 5; leave --num_heads out" in line
    (tmp_path / "c.json").write_text(json.dumps(advice))
    after = imported("albef", file, tmp_path / "after", "--config", str(tmp_path / "c.json"))
    model: Any = read_config(after).model
    assert (model.image_num_heads, model.num_heads) == (3, 7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"crossattn": "i2t"}, "crossattn is no key of this config; did you mean cross_attn?"),
        ({"direction": "image"}, "direction is 'image', but the model would be imported with 'text'"),
        ({"cross_attn": "sideways"}, "settings make no SCANConfig"),
        ({"precomp_enc_type": "weight_norm"}, "precomp_enc_type is 'weight_norm'; expected 'basic'"),
        ({"arguments": {"direction": "image", "lamda_lse": 5.0}}, "did you mean lambda_lse?"),
    ],
)
def test_a_key_of_a_config_is_used_or_refused(config: Any, message: str, tmp_path: Path, capsys: Any):
    file = exported(scan(tmp_path), "official", tmp_path / "x.pth")
    assert message in error_line("scan", file, config, tmp_path, capsys)


def test_keys_that_were_not_used_are_printed(tmp_path: Path, capsys: Any):
    """Training settings of the official code; a setting that agrees with the weights is no contradiction."""
    file = exported(scan(tmp_path), "official", tmp_path / "x.pth")
    (tmp_path / "c.json").write_text(json.dumps({"cross_attn": "i2t", "margin": 0.2, "embed_size": 10, "norm": "l2"}))
    assert "norm is 'l2'" in error_line("scan", file, {"cross_attn": "i2t", "norm": "l2"}, tmp_path, capsys)
    (tmp_path / "c.json").write_text(json.dumps({"cross_attn": "i2t", "margin": 0.2, "embed_size": 10}))
    imported("scan", file, tmp_path / "after", "--config", str(tmp_path / "c.json"))
    assert f"{tmp_path / 'c.json'}: keys that were not used: margin, embed_size\n" in capsys.readouterr().out


def test_the_measure_of_vsepp_is_read(tmp_path: Path, capsys: Any):
    example = next(example for example in EXAMPLES if example.system == "vsepp")
    file = exported(written(example, example.arguments, tmp_path / "before"), "official", tmp_path / "x.pth")
    (tmp_path / "c.json").write_text(json.dumps({"measure": "order"}))
    after = imported("vsepp", file, tmp_path / "after", "--config", str(tmp_path / "c.json"))
    model: Any = read_config(after).model
    assert model.measure == "order"
    assert "use_abs is True; expected False" in error_line("vsepp", file, {"use_abs": True}, tmp_path, capsys)


def test_help_of_export_is_true(tmp_path: Path, capsys: Any):
    """The names, formats and files that `diptych export --help` promises."""
    run = scan(tmp_path)
    assert main(["export", "--help"]) == 0
    text = capsys.readouterr().out
    assert "FILE.pth.config.json" in text and "settings in its metadata" in text and "own names" not in text
    assert main(["export", str(run), "--to", "official", "--out", str(tmp_path / "FILE.safetensors")]) == 2
    assert main(["export", str(run), "--to", "safetensors", "--out", str(tmp_path / "FILE.pth")]) == 2
    exported(run, "official", tmp_path / "FILE.pth")
    exported(run, "safetensors", tmp_path / "FILE.safetensors")
    assert (tmp_path / "FILE.pth.config.json").is_file()
    image, words = torch.load(tmp_path / "FILE.pth", weights_only=True)["model"]
    flat = load_file(tmp_path / "FILE.safetensors")
    assert flat.keys() == {*(f"img_enc.{name}" for name in image), *(f"txt_enc.{name}" for name in words)}
    with safe_open(tmp_path / "FILE.safetensors", "pt") as opened:
        settings = json.loads(opened.metadata()[METADATA])
    assert settings == json.loads((tmp_path / "FILE.pth.config.json").read_text())


HF = {"vit": "classification", "vilt": "encoder", "clip": "pretraining", "blip": "caption"}
INEXPRESSIBLE = {"vit": {}, "vilt": {"text_eps": 0.01}, "clip": {}, "blip": {"enc_token_id": 5}}


@pytest.mark.slow
@pytest.mark.parametrize("system", HF)
def test_hugging_face_folders_keep_settings_or_name_what_their_config_cannot_express(
    system: str, tmp_path: Path, capsys: Any
):
    found = [x for x in EXAMPLES if (x.system, x.task) == (system, HF[system])]
    example = next(x for x in found if x.arguments["grid"] in ((3, 3), (2, 2)))
    settings = random_settings(example, random.Random(system)) | {"representation": 0, "pooling": "cls"}
    settings = {name: value for name, value in settings.items() if name in vars(ADAPTERS[system].config_class())}
    if system == "vilt":
        settings["text_eps"] = settings["eps"]
    if system == "blip":
        words = settings["vocab_size"]
        settings |= {"grid": (3, 3), "image_dim": 20, "image_num_heads": 5, "enc_token_id": words - 1}
    if system == "clip":
        settings["text_activation"] = "relu"
    before = written(example, settings, tmp_path / "before")
    after = imported(system, exported(before, "hf", tmp_path / "hf"), tmp_path / "after")
    assert read_config(before).model == read_config(after).model
    for name, value in INEXPRESSIBLE[system].items():
        other = written(example, settings | {name: value}, tmp_path / "other")
        capsys.readouterr()
        assert main(["export", str(other), "--to", "hf", "--out", str(tmp_path / "hf2")]) == 2
        assert f"transformers' config cannot express {name} {value}" in capsys.readouterr().err
        assert not (tmp_path / "hf2" / "config.json").exists()
