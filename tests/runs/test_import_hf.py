"""A folder saved by transformers, imported at the command line, computes what transformers computes, for any config."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diptych.cli import main
from diptych.data.images.transforms import stack, transform
from tests.runs.hf_random import CLASSES, close, config_of, equal, imported, saved

pytest.importorskip("transformers")


def error_line(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one-line error of a failed import."""
    capsys.readouterr()
    assert main(["import", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def changed(file: Path, **values: Any) -> None:
    """Sets keys of a JSON file: "part__key" within a nested part; the value ... removes a key."""
    config = json.loads(file.read_text())
    for name, value in values.items():
        part, _, key = name.rpartition("__")
        where = config[part] if part else config
        if value is ...:
            del where[key]
        else:
            where[key] = value
    file.write_text(json.dumps(config))


def checked(kind: str, seed: int, folder: Path) -> None:
    """Checks that a random model is equal after import, after export to transformers, and after another import."""
    import transformers

    draw = random.Random(f"{kind} {seed}")
    config = config_of(kind, draw)
    theirs = saved(kind, config, folder / "theirs", seed)
    torch.manual_seed(seed)
    run, step = imported(CLASSES[kind], folder / "theirs", folder / "run")
    assert equal(kind, theirs, step), config
    labelled = kind in ("ViTForImageClassification", "ViltForQuestionAnswering")
    assert run.labels == (tuple(theirs.config.id2label.values()) if labelled else ())
    assert main(["export", str(folder / "run"), "--to", "hf", "--out", str(folder / "hf")]) == 0
    again, loading_info = getattr(transformers, kind).from_pretrained(folder / "hf", output_loading_info=True)
    unread = set(loading_info["missing_keys"]) - {"pooler.dense.weight", "pooler.dense.bias"}
    assert not unread and not set(loading_info["unexpected_keys"]) - {"mlm_score.bias"}  # where older versions keep it
    assert equal(kind, again.eval(), step)
    assert kind != "ViTForImageClassification" or again.config.id2label == theirs.config.id2label
    run2, step2 = imported(CLASSES[kind], folder / "hf", folder / "back")
    assert equal(kind, theirs, step2)
    assert (run2.model, run2.task, run2.heads, run2.labels) == (run.model, run.task, run.heads, run.labels)


@pytest.mark.quick("ViTFor*", "ViltModel", "CLIPModel", "BlipForConditionalGeneration")
@pytest.mark.parametrize("kind", CLASSES)
def test_one_model_of_each_class_is_equal(kind: str, tmp_path: Path):
    checked(kind, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_random_models_of_each_class_are_equal(kind: str, tmp_path: Path):
    for seed in range(1, 4):  # tests/test_api_huggingface.py has others
        checked(kind, seed, tmp_path / str(seed))


VIT: dict[str, Any] = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=12, image_size=16, patch_size=8,
    id2label={0: "tench", 1: "crane", 2: "crane"}, label2id={"tench": 0, "crane": 2},
)  # fmt: skip
TOWER: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
CLIP: dict[str, Any] = dict(
    vision_config=TOWER | {"image_size": 16, "patch_size": 8},
    text_config=TOWER | {"vocab_size": 50, "max_position_embeddings": 9, "eos_token_id": 2},
    projection_dim=6,
)
BLIP: dict[str, Any] = dict(
    vision_config=TOWER | {"image_size": 16, "patch_size": 8},
    text_config=TOWER | {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": 48, "sep_token_id": 4},
)
VILT: dict[str, Any] = TOWER | dict(
    image_size=16, patch_size=8, vocab_size=50, max_position_embeddings=9, id2label={0: "yes", 1: "no"}
)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", VIT),
    "clip": ("CLIPModel", CLIP),
    "blip": ("BlipForConditionalGeneration", BLIP),
    "vilt": ("ViltForQuestionAnswering", VILT),
}


@pytest.mark.quick("vit-*", "*-shards")
@pytest.mark.parametrize("form", ["shards", "bin", "bin shards", "old names"])
@pytest.mark.parametrize("system", KINDS)
def test_weights_of_every_file_layout_are_read(system: str, form: str, tmp_path: Path):
    kind, config = KINDS[system]
    theirs = saved(kind, config, tmp_path / "one", max_shard_size="3KB" if form == "shards" else "1GB")
    if form != "shards":
        (tmp_path / "one" / "model.safetensors").unlink()
        state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
        if form == "old names":
            for stem in ("text_model.", "vision_model.", "text_decoder.bert."):
                state |= (
                    {f"{stem}embeddings.position_ids": torch.arange(9)[None]}
                    if any(n.startswith(stem) for n in state) and system != "blip"
                    else {}
                )
        names = sorted(state)
        if form == "bin shards":
            halves = {"a.bin": names[::2], "b.bin": names[1::2]}
            for file, part in halves.items():
                torch.save({name: state[name] for name in part}, tmp_path / "one" / file)
            index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
            (tmp_path / "one" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        else:
            torch.save(state, tmp_path / "one" / "pytorch_model.bin")
    assert len(list((tmp_path / "one").iterdir())) > (3 if "shards" in form else 1)
    assert equal(kind, theirs, imported(system, tmp_path / "one", tmp_path / "run")[1])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../secret.safetensors", "'../secret.safetensors'; expected a file of the same folder"),
        ("/etc/x.bin", "expected a file of the same folder"),
        ("..\\x.bin", "expected a file of the same folder"),
        ("config.json", "expected a file of the same folder"),
        ("gone.safetensors", "no such file"),
        (3, "weight_map must map each weight to its file"),
    ],
)
def test_an_index_names_files_of_its_own_folder(file: object, message: str, tmp_path: Path, capsys):
    saved("ViTModel", VIT, tmp_path / "one", max_shard_size="3KB")
    index = tmp_path / "one" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["vit.more"] = file
    index.write_text(json.dumps(content))
    assert message in error_line(capsys, "vit", tmp_path / "one", "--out", tmp_path / "run")


def test_an_index_and_its_shards_must_have_the_same_weights(tmp_path: Path, capsys):
    saved("ViTModel", VIT, tmp_path / "one", max_shard_size="3KB")
    index = tmp_path / "one" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name, file = next(iter(content["weight_map"].items()))
    index.write_text(json.dumps({"weight_map": content["weight_map"] | {"vit.more": file}}))
    assert "vit.more is not in it" in error_line(capsys, "vit", tmp_path / "one", "--out", tmp_path / "run")
    del content["weight_map"][name]
    index.write_text(json.dumps(content))
    assert f"{name} is in it, but the index" in error_line(capsys, "vit", tmp_path / "one", "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("system", "change", "message"),
    [
        ("vit", {"hidden_act": "mish"}, "config.json: hidden_act is 'mish'; expected one of gelu, "),
        ("vit", {"num_attention_heads": 3}, "width 16 does not divide into 3 heads"),
        ("vit", {"num_attention_heads": "4"}, "num_attention_heads is '4'; expected an integer in [1, 2**24)"),
        ("vit", {"layer_norm_eps": True}, "layer_norm_eps is True; expected a number"),
        ("vit", {"qkv_bias": False}, "qkv_bias is False; expected True"),
        ("vit", {"num_channels": 1}, "num_channels is 1; expected 3"),
        ("vit", {"use_swiglu": True}, "use_swiglu = True is a key without a rule here"),
        ("vit", {"\x1b[2J": 1}, "config.json: '\\x1b[2J' = 1 is a key without a rule here"),
        ("vit", {"model_type": "deit"}, "model_type is 'deit'; expected 'vit'"),
        ("vit", {"architectures": ["ViTForMaskedImageModeling"]}, "architectures is 'ViTForMaskedImageModeling'; expected one"),
        ("vit", {"architectures": ["ViTModel"]}, "architectures is ViTModel, but the weights are of task classification"),
        ("vit", {"hidden_size": 32}, "hidden_size makes dim 32, but in the weights it is 16"),
        ("vit", {"image_size": 24}, "image_size 24 x 24 makes a grid of 3 x 3 patches, but in the weights it is 2 x 2"),
        ("vit", {"image_size": ...}, "image_size 224 x 224 makes a grid of 28 x 28"),
        ("vit", {"patch_size": [8, 4]}, "patch_size is [8, 4]; expected square patches"),
        ("vit", {"problem_type": "regression"}, "problem_type is 'regression'; expected None or 'single_label_"),
        ("vit", {"id2label": {"0": "a", "1": "b"}}, "id2label names 2 classes, but the weights have 3"),
        ("vit", {"id2label": None, "num_labels": 2}, "num_labels is 2, but the weights have 3 classes"),
        ("vit", {"id2label": {"0": "a", "1": "b", "3": "c"}}, 'id2label must map "0", "1", ... to names'),
        ("vit", {"id2label": {"0": "a", "1": "b", "2": 3}}, "id2label must map"),
        ("vit", {"label2id": {"tench": 1}}, "label2id has 'tench' at 1, but id2label at 0"),
        ("vit", {"label2id": {"tench": "1"}}, "label2id has 'tench' at '1', but id2label at 0"),
        ("clip", {"text_config__eos_token_id": 7}, "text_config.eos_token_id is 7; expected 49, where texts end here"),
        ("vit", {"pruned_heads": {"0": [1]}}, "pruned_heads is {'0': [1]}; expected {}"),
        ("clip", {"vision_config": 3}, "vision_config is 3; expected keys and values"),
        ("clip", {"projection_dim": 7}, "projection_dim makes embed_dim 7, but in the weights it is 6"),
        ("clip", {"vision_config__num_attention_heads": ...}, "width 16 does not divide into 12 heads"),
        ("clip", {"text_config__hidden_act": "tanh"}, "text_config.hidden_act is 'tanh'; expected one of"),
        ("clip", {"vision_config__rope_theta": 1e4}, "vision_config.rope_theta = 10000.0 is a key without a rule"),
        ("blip", {"text_config__is_decoder": False}, "text_config.is_decoder is False; expected True"),
        ("blip", {"text_config__position_embedding_type": "relative_key"}, "expected 'absolute'"),
        ("vilt", {"max_image_length": 100}, "max_image_length is 100; expected -1"),
        ("vilt", {"modality_type_vocab_size": 3}, "modality_type_vocab_size is 3, but in the weights it is 2"),
        ("vilt", {"type_vocab_size": 1}, "type_vocab_size is 1; expected 2"),
        ("vilt", {"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}; expected None"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_an_unsupported_config_is_an_error_with_its_key(
    system: str, change: dict[str, Any], message: str, tmp_path: Path, capsys
):
    kind, config = KINDS[system]
    saved(kind, config, tmp_path / "one")
    changed(tmp_path / "one" / "config.json", **change)
    line = error_line(capsys, system, tmp_path / "one", "--out", tmp_path / "run")
    assert message in line and not (tmp_path / "run").exists(), line


def test_heads_of_the_command_line_must_be_the_config_s(tmp_path: Path, capsys):
    saved("ViTModel", VIT, tmp_path / "one")
    line = error_line(capsys, "vit", tmp_path / "one", "--out", tmp_path / "run", "--num_heads", "2")
    assert "config.json: num_heads is 4, but --num_heads 2; leave --num_heads out" in line


def test_absent_keys_have_the_class_s_defaults(tmp_path: Path):
    """A CLIP's nested `text_config_dict` overrides its `text_config`, as in transformers."""
    import transformers

    wide = {"hidden_size": 24, "intermediate_size": 12, "num_hidden_layers": 1}
    config = {
        "vision_config": wide | {"image_size": 16, "patch_size": 8},
        "text_config": wide | {"num_attention_heads": 3, "hidden_act": "relu", "vocab_size": 50, "max_position_embeddings": 9},
        "text_config_dict": wide | {"vocab_size": 50, "max_position_embeddings": 9, "layer_norm_eps": 0.1, "eos_token_id": 2},
    }  # fmt: skip
    theirs = saved("CLIPModel", config, tmp_path / "one")
    assert theirs.config.text_config.hidden_act == "quick_gelu" and theirs.config.text_config.num_attention_heads == 8
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    run, step = imported("clip", tmp_path / "one", tmp_path / "run")
    assert (run.model.num_heads, run.model.text_num_heads, run.model.text_eps) == (12, 8, 0.1)
    assert equal("CLIPModel", theirs, step)

    theirs = saved("ViTModel", {**VIT, "hidden_size": 24, "num_attention_heads": 12}, tmp_path / "two")
    short = {k: VIT[k] for k in ("num_hidden_layers", "intermediate_size", "image_size", "patch_size")} | {
        "hidden_size": 24
    }
    (tmp_path / "two" / "config.json").write_text(json.dumps(short))
    run, step = imported("vit", tmp_path / "two", tmp_path / "run2")
    assert (run.model.num_heads, run.model.eps, run.model.activation) == (12, 1e-12, "gelu")
    assert equal("ViTModel", transformers.ViTModel.from_pretrained(tmp_path / "two").eval(), step)


PUBLISHED_CLIP_TEXT = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "attention_dropout": 0.0, "bad_words_ids": None,
    "bos_token_id": 0, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None, "decoder_start_token_id": None,
    "diversity_penalty": 0.0, "do_sample": False, "dropout": 0.0, "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": 2, "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "initializer_factor": 1.0, "initializer_range": 0.02, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20,
    "min_length": 0, "model_type": "clip_text_model", "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False, "output_scores": False,
    "pad_token_id": 1, "prefix": None, "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False,
    "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None,
    "task_specific_params": None, "temperature": 1.0, "tie_encoder_decoder": False, "tie_word_embeddings": True,
    "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": None, "torchscript": False,
    "transformers_version": "4.16.0.dev0", "use_bfloat16": False,
}  # fmt: skip
"""Keys other than sizes in the text_config of a config.json by older versions (openai/clip-vit-base-patch32)."""


def test_the_keys_of_older_versions_are_accepted(tmp_path: Path):
    theirs = saved("CLIPModel", CLIP, tmp_path / "one")
    file = tmp_path / "one" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] |= PUBLISHED_CLIP_TEXT
    config["vision_config"] |= {k: v for k, v in PUBLISHED_CLIP_TEXT.items() if k != "model_type"}
    file.write_text(
        json.dumps(config | {"text_config_dict": None, "vision_config_dict": None, "torch_dtype": "float32"})
    )
    assert equal("CLIPModel", theirs, imported("clip", tmp_path / "one", tmp_path / "run")[1])


def test_an_empty_text_config_dict_means_the_class_s_defaults(tmp_path: Path, capsys):
    """As in transformers, only None means that there is no `text_config_dict`."""
    saved("CLIPModel", CLIP, tmp_path / "one")
    changed(tmp_path / "one" / "config.json", text_config_dict={})
    assert "text_config.hidden_size makes text_dim 512" in error_line(
        capsys, "clip", tmp_path / "one", "--out", tmp_path / "a"
    )


def test_a_clip_s_texts_end_at_its_largest_id(tmp_path: Path, capsys):
    """The id of the last token is equivalent to 2; the class's default, an id outside the vocabulary, is printed."""
    last = {**CLIP, "text_config": CLIP["text_config"] | {"eos_token_id": 49}}
    theirs = saved("CLIPModel", last, tmp_path / "one")
    assert equal("CLIPModel", theirs, imported("clip", tmp_path / "one", tmp_path / "a")[1])
    capsys.readouterr()
    changed(tmp_path / "one" / "config.json", text_config__eos_token_id=49407)
    imported("clip", tmp_path / "one", tmp_path / "b")
    assert "text_config.eos_token_id is 49407, outside of the 50 tokens" in capsys.readouterr().out


def test_the_file_of_weights_in_a_folder_is_read_with_its_config(tmp_path: Path):
    """The config beside model.safetensors is used if the path is that of the file."""
    import transformers

    theirs = saved("ViTForImageClassification", VIT | {"hidden_act": "relu", "layer_norm_eps": 0.1}, tmp_path / "one")
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessorPil(size=size, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "one")
    run, step = imported("vit", tmp_path / "one" / "model.safetensors", tmp_path / "run")
    assert equal("ViTForImageClassification", theirs, step)
    assert run.labels == ("tench", "crane", "crane") and run.images.mean == (0.1, 0.2, 0.3)


def test_numbers_of_labels_may_be_strings_and_classes_without_names_are_numbered(tmp_path: Path):
    """label2id as the example scripts of transformers saved it; without id2label and num_labels classes have no names."""
    saved("ViTForImageClassification", VIT, tmp_path / "one")
    changed(tmp_path / "one" / "config.json", label2id={"tench": "0", "crane": "2"})
    assert imported("vit", tmp_path / "one", tmp_path / "a")[0].labels == ("tench", "crane", "crane")
    changed(tmp_path / "one" / "config.json", id2label=..., label2id=...)
    assert imported("vit", tmp_path / "one", tmp_path / "b")[0].labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_labels_become_the_run_s_names(tmp_path: Path, capsys):
    saved("ViTForImageClassification", VIT, tmp_path / "one")
    assert imported("vit", tmp_path / "one", tmp_path / "a")[0].labels == ("tench", "crane", "crane")
    saved("ViltForQuestionAnswering", VILT, tmp_path / "two")
    assert imported("vilt", tmp_path / "two", tmp_path / "b")[0].labels == ("yes", "no")
    assert "no names" not in capsys.readouterr().out
    saved(
        "ViTForImageClassification",
        {k: v for k, v in VIT.items() if "label" not in k} | {"num_labels": 4},
        tmp_path / "3",
    )
    assert imported("vit", tmp_path / "3", tmp_path / "c")[0].labels == tuple(f"LABEL_{i}" for i in range(4))
    assert "its 4 classes have no names in the checkpoint or its config" in capsys.readouterr().out
    (tmp_path / "names.json").write_text(json.dumps(["a", "b", "c", "d"]))
    named = imported("vit", tmp_path / "3", tmp_path / "d", "--answers", str(tmp_path / "names.json"))[0]
    assert named.labels == ("a", "b", "c", "d")
    two = VILT | {"modality_type_vocab_size": 3, "num_images": 2, "id2label": {0: "True", 1: "False"}}
    saved("ViltForImagesAndTextClassification", two, tmp_path / "four")
    line = error_line(capsys, "vilt", tmp_path / "four", "--out", tmp_path / "e")
    assert "id2label is ['True', 'False']; expected False, True" in line


PROCESSORS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "vit": [
        ("ViTImageProcessorPil", {"size": {"height": 16, "width": 16}}),
        ("ViTImageProcessorPil", {"size": {"height": 16, "width": 16}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 2.0], "resample": 3}),
        ("ViTImageProcessorPil", {"size": {"height": 16, "width": 16}, "rescale_factor": 1 / 127.5, "resample": 1}),
        ("ViTImageProcessorPil", {"size": {"height": 16, "width": 16}, "do_rescale": False, "resample": 0}),
        ("ViTImageProcessorPil", {"size": {"height": 16, "width": 16}, "do_normalize": False, "resample": 4}),
        ("DeiTImageProcessorPil", {"size": {"height": 20, "width": 20}, "crop_size": {"height": 16, "width": 16}}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}}),
    ],
    "clip": [
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 21}, "crop_size": {"height": 16, "width": 16}, "resample": 2}),
        ("CLIPImageProcessorPil", {"size": {"height": 16, "width": 16}, "do_center_crop": False}),
    ],
    "blip": [
        ("BlipImageProcessorPil", {"size": {"height": 16, "width": 16}, "image_mean": [0.0, 0.5, 1.0]}),
        ("BlipImageProcessorPil", {"size": {"height": 16, "width": 16}, "do_pad": True, "size_divisor": 32}),
        ("CLIPImageProcessorPil", {"size": 16, "default_to_square": True, "do_center_crop": False}),
        ("DeiTImageProcessorPil", {"size": 18, "default_to_square": None, "crop_size": 16, "do_center_crop": True}),
    ],
    "vilt": [
        ("ViltImageProcessorPil", {"size": {"shortest_edge": 40}, "size_divisor": 8}),
        ("ViltImageProcessorPil", {"size": {"shortest_edge": 64}, "image_std": [0.3, 0.2, 0.1], "resample": 2}),
    ],
}  # fmt: skip


def photographs() -> list[Pillow.Image]:
    draw = np.random.default_rng(0)
    sizes = [(40, 56), (57, 33), (31, 31), (80, 38)]
    return [Pillow.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


@pytest.mark.quick("False-vilt", "True-vilt")
@pytest.mark.parametrize("system", KINDS)
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.slow
def test_images_are_preprocessed_as_by_the_folder_s_processor(system: str, together: bool, tmp_path: Path):
    import transformers

    kind, config = KINDS[system]
    saved(kind, config, tmp_path / "one")
    for i, (name, values) in enumerate(PROCESSORS[system]):
        processor = getattr(transformers, name)(**values)
        processor.save_pretrained(tmp_path / "one")
        if together:
            file = tmp_path / "one" / "preprocessor_config.json"
            nested = {"image_processor": json.loads(file.read_text()), "processor_class": "Processor"}
            (tmp_path / "one" / "processor_config.json").write_text(json.dumps(nested))
            file.unlink()
        run = imported(system, tmp_path / "one", tmp_path / f"run{i}")[0]
        theirs = processor(photographs(), return_tensors="pt")["pixel_values"]
        images = replace(run.images, augment=False)  # for training only
        ours = stack([transform(photo, images) for photo in photographs()], images)
        assert close(ours.pixels, theirs.float()), values
        assert main(["export", str(tmp_path / f"run{i}"), "--to", "hf", "--out", str(tmp_path / f"hf{i}")]) == 0
        again = getattr(transformers, name).from_pretrained(tmp_path / f"hf{i}")(photographs(), return_tensors="pt")
        assert close(ours.pixels, again["pixel_values"].float()), values
        assert imported(system, tmp_path / f"hf{i}", tmp_path / f"back{i}")[0].images == run.images


@pytest.mark.parametrize(
    ("system", "values", "message"),
    [
        ("vit", {"size": {"height": 32, "width": 32}}, "images become 32 x 32, but the model expects 16 x 16"),
        ("vit", {"size": {"shortest_edge": 16}}, "without do_center_crop; expected height and width"),
        ("vit", {"size": {"longest_edge": 16}}, "size is {'longest_edge': 16}; expected height and width"),
        ("vit", {"size": {"shortest_edge": 16, "longest_edge": 32}}, "expected height and width"),
        ("vit", {"do_resize": False}, "do_resize is False; expected True"),
        ("vit", {"do_pad": True, "pad_size": {"height": 32, "width": 32}}, "pad_size is {'height': 32, 'width': 32}; expected None"),
        ("vit", {"size": 16, "default_to_square": None}, "size is 16 without do_center_crop; expected height and width"),
        ("vit", {"size": 16, "do_center_crop": True, "crop_size": None}, "crop_size is null or absent, but do_center_crop is true"),
        ("vilt", {"size": 40, "size_divisor": 8, "do_pad": False}, "do_pad is False; expected True"),
        ("vit", {"resample": 9}, "resample is 9; expected a number from 0 to 5"),
        ("vit", {"image_std": [1, 0, 1]}, "image_std is [1, 0, 1]; expected numbers above 0"),
        ("vit", {"image_mean": "grey"}, "image_mean is 'grey'; expected a number"),
        ("vit", {"rescale_factor": 0}, "rescale_factor is 0; expected a number above 0"),
        ("vit", {"do_thumbnail": True}, "do_thumbnail = True is a key without a rule"),
        ("vit", {"image_processor_type": "ConvNextImageProcessor"}, "expected one of ViT, DeiT, CLIP, Blip + ImageProcessor"),
        ("clip", {"crop_size": {"height": 16, "width": 8}, "size": 16}, "crop_size 16 x 8: expected a square"),
        ("clip", {"crop_size": 16, "size": 12}, "crop_size 16 x 16 is larger than the resized image"),
        ("vilt", {"size": 40, "size_divisor": 12}, "size_divisor is 12; expected a multiple of the patch size, 8"),
        ("vilt", {"size": {"height": 40, "width": 40}}, "ViLT's size is a shortest_edge"),
    ],
)  # fmt: skip
def test_unsupported_preprocessing_is_an_error_with_its_key(
    system: str, values: dict[str, Any], message: str, tmp_path: Path, capsys
):
    saved(*KINDS[system], tmp_path / "one")
    (tmp_path / "one" / "preprocessor_config.json").write_text(json.dumps(values))
    line = error_line(capsys, system, tmp_path / "one", "--out", tmp_path / "run")
    assert message in line and "preprocessor_config.json: " in line, line


def test_an_absent_image_size_is_the_model_s(tmp_path: Path):
    """The class's default is 224 pixels; mean and std are read nevertheless. Older files give one number as size."""
    saved(*KINDS["vit"], tmp_path / "one")
    file = tmp_path / "one" / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": 0.5}))
    images = imported("vit", tmp_path / "one", tmp_path / "a")[0].images
    assert (images.shorter_side, images.square, images.mean, images.std) == (16, True, (0.1, 0.2, 0.3), (0.5,) * 3)
    assert images.resample == "bilinear"  # ViTImageProcessor's default
    file.write_text(json.dumps({"feature_extractor_type": "ViTFeatureExtractor", "size": 16, "do_normalize": True}))
    assert imported("vit", tmp_path / "one", tmp_path / "b")[0].images.shorter_side == 16
    file.write_text(
        json.dumps({"size": 16, "crop_size": None, "do_center_crop": None, "pad_size": None, "device": None})
    )
    assert (
        imported("vit", tmp_path / "one", tmp_path / "null")[0].images.crop == 0
    )  # as version 4's fast processors write
    file.write_text(json.dumps({"size": 32}))
    images = imported("vit", tmp_path / "one", tmp_path / "c", "--grid", "4x4")[0].images
    assert (images.shorter_side, images.square) == (32, True)
