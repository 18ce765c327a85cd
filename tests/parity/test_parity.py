"""Parity with the official code, and that any difference fails."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diptych.checkpoints.mapping import KeyMapping
from diptych.checkpoints.read import WeightsError
from diptych.models.importing import ADAPTERS, OfficialCheckpoint
from diptych.models.vilt.checkpoint import NAMES
from tests.parity.__main__ import main
from tests.parity.compare import LAYOUTS, compare, parity, recompute
from tests.parity.golden_case import FILES, Case, Golden, Recomputed, read_golden
from tests.parity.goldens import GOLDEN_CASES


def failures(folder: Path) -> set[str]:
    return {row.tensor for row in parity(folder).rows if not row.ok}


@pytest.mark.quick("vilt_pretrain", "vit", "mae", "open_clip", "vsepp")
def test_every_tensor_equals_the_official_code_s(golden_folder: Path):
    report = parity(golden_folder)
    assert [row for row in report.rows if not row.ok] == []
    assert report.passed
    expected = {n.removeprefix("out.") for n in load_file(golden_folder / "case.safetensors") if n.startswith("out.")}
    assert {(row.tensor, row.layout) for row in report.rows} == {(n, layout) for n in expected for layout in LAYOUTS}


CASES = sorted(folder.name for folder in GOLDEN_CASES.iterdir())


def invented(golden: Golden) -> dict[str, Tensor]:
    """Names that no golden has; the last one begins like an existing name."""
    return dict.fromkeys(("invented", "grad.invented.weight", f"{min(golden.expected)}_invented"), torch.zeros(3))


@cache
def shared(name: str, layout: str) -> tuple[Golden, dict[str, Recomputed | str]]:
    """A golden and its recomputed tensors, invented names included, shared by the tests below."""
    golden = read_golden(GOLDEN_CASES / name)
    return golden, recompute(replace(golden, expected=golden.expected | invented(golden)), layout)


@pytest.mark.quick("vit-*", "mae-*")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_one_altered_element_fails(name: str, layout: str):
    golden, recomputed = shared(name, layout)
    for tensor, expected in golden.expected.items():
        ours = recomputed[tensor]
        assert isinstance(ours, Recomputed), (tensor, ours)
        row = compare(tensor, layout, expected, ours)
        assert row.ok and row.tolerance is not None, row
        indices = _compared_indices(expected, ours, layout)
        for index in indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(7))][:3].tolist():
            for sign in (-1, 1):
                altered = expected.clone().flatten()
                altered[index] += sign * (3 * row.tolerance if altered.is_floating_point() else 1)
                assert not compare(tensor, layout, altered.view_as(expected), ours).ok, tensor


@pytest.mark.quick("vit-*", "mae-*")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_an_unknown_name_fails(name: str, layout: str):
    golden, recomputed = shared(name, layout)
    for tensor, expected in invented(golden).items():
        row = compare(tensor, layout, expected, recomputed[tensor])
        assert not row.ok and "cannot be recomputed" in row.note


def _compared_indices(expected: Tensor, ours: Recomputed, layout: str) -> Tensor:
    """Flat indices of the elements that are compared in a layout: all of them, or those that are not padding."""
    if layout == "padded" or ours.mask is None:
        return torch.arange(expected.numel())
    mask = ours.mask.reshape(*ours.mask.shape, *[1] * (expected.dim() - ours.mask.dim())).expand_as(expected)
    return mask.flatten().nonzero().squeeze(1)


@pytest.mark.quick("vit")
@pytest.mark.parametrize("name", CASES)
def test_another_shape_or_dtype_or_a_nonfinite_value_fails(name: str):
    golden, recomputed = shared(name, "padded")
    for tensor, expected in golden.expected.items():
        ours = recomputed[tensor]
        assert isinstance(ours, Recomputed), (tensor, ours)
        assert "expected" in compare(tensor, "padded", expected[None], ours).note
        assert "expected" in compare(tensor, "padded", expected.half(), ours).note
        for value in (torch.nan, torch.inf, -torch.inf) if expected.is_floating_point() else ():
            changed = expected.clone().flatten()
            changed[len(changed) // 2] = value
            assert not compare(tensor, "padded", changed.view_as(expected), ours).ok, tensor
            nonfinite = replace(ours, value=changed.view_as(expected))
            assert not compare(tensor, "padded", expected, nonfinite).ok, tensor


def test_fill_values_must_be_equal_exactly_and_do_not_widen_the_tolerance():
    expected = torch.tensor([-10000.0, -100.0, 1.0, 0.5])
    assert compare("x", "padded", expected, Recomputed(expected + torch.tensor([0, 0, 1e-5, 0]))).ok
    assert not compare("x", "padded", expected, Recomputed(expected + torch.tensor([0, 0, 2e-5, 0]))).ok
    assert not compare("x", "padded", expected, Recomputed(expected + torch.tensor([1e-2, 0, 0, 0]))).ok
    assert not compare("x", "padded", expected, Recomputed(torch.tensor([-10000.0, -100.0, -100.0, 0.5]))).ok
    assert compare("grad.x", "padded", expected, Recomputed(expected + torch.tensor([0.5, 0, 0, 0]))).ok


def change_case(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """Rewrites case.safetensors of a folder with its tensors changed."""
    tensors = load_file(folder / "case.safetensors")
    change(tensors)
    (folder / "case.safetensors").unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "case.safetensors")
    return folder


def without(folder: Path, prefix: str) -> Path:
    """Removes the tensors with a prefix from case.safetensors of a folder."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return change_case(folder, change)


@pytest.mark.quick("vit")
@pytest.mark.slow
def test_a_changed_tensor_fails_by_its_name(copied: Path):
    def change(tensors: dict[str, Tensor]) -> None:
        for name in ("out.loss", "out.text_feats"):
            if name in tensors:
                tensors[name].view(-1)[-1] += 1e-3  # in text_feats, the last position of the last text

    assert failures(change_case(copied, change)) == {"loss" if copied.name == "vit" else "text_feats"}


@pytest.mark.quick("vit")
@pytest.mark.slow
def test_a_tensor_that_cannot_be_recomputed_fails(copied: Path):
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["out.invented"] = torch.zeros(3)
        tensors["out.grad.invented.weight"] = torch.zeros(3)

    rows = {row.tensor: row for row in parity(change_case(copied, change)).rows if not row.ok}
    assert rows.keys() == {"invented", "grad.invented.weight"}
    assert all("cannot be recomputed" in row.note for row in rows.values())


@pytest.mark.quick("vit")
def test_a_tensor_whose_input_is_missing_fails(copied: Path):
    needed = "labels" if copied.name == "vit" else "mlm_ids"
    without(copied, f"in.{needed}")
    rows = [row for row in parity(copied).rows if not row.ok]
    assert {row.tensor for row in rows} > {"loss" if copied.name == "vit" else "mlm_loss"}
    assert any(row.tensor.startswith("grad.") for row in rows)


@pytest.mark.slow
def test_another_weight_or_number_of_heads_fails(copied: Path):
    config = json.loads((copied / "config.json").read_text())
    heads = "num_heads" if "num_heads" in config else "num_attention_heads"
    (copied / "config.json").write_text(json.dumps(config | {heads: 2}))
    assert not parity(copied).passed
    (copied / "config.json").write_text(json.dumps(config))
    assert parity(copied).passed
    weights = torch.load(copied / "checkpoint.pth", weights_only=True)
    state = weights.get("state_dict", weights)
    next(t for name, t in state.items() if name.endswith("blocks.3.mlp.fc2.bias"))[0] += 0.01
    (copied / "checkpoint.pth").unlink()
    torch.save(weights, copied / "checkpoint.pth")
    assert not parity(copied).passed


@pytest.mark.quick("vit")
@pytest.mark.slow
def test_every_name_is_printed_in_full_and_the_json_lists_what_was_compared(
    copied: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "20")
    assert main([str(copied), "--json", str(tmp_path / "report.json")]) == 0
    printed = capsys.readouterr().out.split()
    report = json.loads((tmp_path / "report.json").read_text())["folders"][str(copied)]
    names = {name for name in load_file(copied / "case.safetensors") if name.startswith("out.")}
    assert report["passed"] is True and names <= set(printed)
    assert {f"out.{row['tensor']}" for row in report["rows"]} == names
    for name in FILES:
        assert report["hashes"][name] == hashlib.sha256((copied / name).read_bytes()).hexdigest()
    assert report["source"] == json.loads((copied / "config.json").read_text())["source"]


@pytest.mark.slow
def test_exit_status_is_one_if_an_element_differs_or_a_folder_cannot_be_read(vit_folder: Path, tmp_path: Path, capsys):
    shutil.copytree(vit_folder, folder := tmp_path / "vit")
    tensors = load_file(folder / "case.safetensors")
    name = sorted(n for n in tensors if n.startswith("out.") and tensors[n].is_floating_point())[0]
    tensors[name].view(-1)[0] += 1.0
    save_file(tensors, folder / "case.safetensors")
    assert main([str(vit_folder), str(folder)]) == 1
    out = capsys.readouterr().out
    assert "DIFFERS" in out and "all equal" in out
    assert main([str(vit_folder), str(tmp_path / "nowhere"), "--json", str(tmp_path / "report.json")]) == 1
    assert "no config.json there" in capsys.readouterr().err
    assert not json.loads((tmp_path / "report.json").read_text())["folders"][str(tmp_path / "nowhere")]["passed"]


def test_settings_are_read_from_the_readme(vit_folder: Path):
    meanings, tensors = read_golden(vit_folder).meanings, load_file(vit_folder / "case.safetensors")
    assert meanings.keys() == tensors.keys()
    case = Case(torch.nn.Module(), {}, {}, meanings={"out.x": "CE over 5 samples, target 3, labels [0, 12]"})
    assert case.from_readme("x", r"target (\d+)", "2") == "3"
    assert case.from_readme("x", r"labels \[([\d, ]+)\]", "1") == "0, 12"
    assert case.from_readme("y", r"target (\d+)", "2") == "2"


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_lacks_a_file_raises(copied: Path, name: str):
    (copied / name).unlink()
    with pytest.raises(WeightsError, match=f"no {name}"):
        parity(copied)


def test_an_empty_or_broken_folder_raises(copied: Path):
    (copied / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json"):
        parity(copied)
    for odd in ('{"num_heads": "4"}', '{"num_heads": -4}', '{"num_heads": 4, "img_size": [8]}', "[]"):
        (copied / "config.json").write_text(odd)
        with pytest.raises(WeightsError):
            parity(copied)
    (copied / "config.json").write_text('{"num_heads": 4}')
    without(copied, "out.")
    with pytest.raises(WeightsError, match=r"no out\.\*"):
        parity(copied)


SIZES = {
    "dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "patch_size": 4, "grid": (2, 8), "vocab_size": 53,
    "text_length": 9, "num_images": 1,
}  # fmt: skip


@pytest.mark.slow
def test_other_sizes_are_read_from_the_files(tmp_path: Path):
    """A case of other sizes, whose expected values come from our padded layout: the packed layout must agree, and every
    size must be inferred from the files only.
    """
    torch.manual_seed(0)
    module, (b, n) = ADAPTERS["vilt"], (5, 7)
    heads = {"heads.itm.": torch.ones(1), "heads.mlm.": torch.ones(1)}
    step = module.build(SIZES, "pretraining", heads)
    for parameter in step.parameters():
        parameter.data.normal_(std=0.2)
    names: KeyMapping = NAMES["pretraining"]
    state = {name: parameter.detach() for name, parameter in step.named_parameters()}
    lengths, sizes = torch.tensor([7, 3, 5, 4, 6]), [(8, 20), (16, 4), (12, 12), (4, 4), (16, 20)]
    real = torch.arange(n) < lengths[:, None]
    images = torch.zeros(2, b, 3, 16, 20)
    for i, (height, width) in enumerate(sizes):
        images[:, i, :, :height, :width] = torch.randn(2, 3, height, width)
    ids = torch.randint(4, 53, (b, n)) * real
    inputs = {
        "text_ids": ids, "text_masks": real.long(), "image": images[0], "false_image": images[1].flip(0),
        "mlm_ids": torch.where(real & (torch.arange(n) == 1), 3, ids), "itm_labels": torch.tensor([0, 1, 1, 0, 1]),
        "mlm_labels": torch.where(real & (torch.arange(n) == 1), ids, -100),
        "cap_selected": (torch.rand(b, 4, 5) < 0.7).long(),
    }  # fmt: skip
    inputs["cap_selected"][:, 0, 0] = 1
    config = {
        "num_attention_heads": 3,
        "image_size_of_pos_embed": [8, 32],
        "patch_size": 4,
        "max_image_len_cap_case": 6,
    }
    imported = OfficialCheckpoint("vilt", "pretraining", SIZES, state, {}, names)
    expected = dict.fromkeys(read_golden(GOLDEN_CASES / "vilt_pretrain").expected, torch.zeros(()))
    recomputed = recompute(Golden(imported, config, inputs, expected, {}), "padded")
    assert all(isinstance(ours, Recomputed) for ours in recomputed.values()), recomputed
    outs = {f"out.{name}": r.value.detach() for name, r in recomputed.items() if isinstance(r, Recomputed)}
    tensors = {f"in.{name}": tensor for name, tensor in inputs.items()} | outs
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, tmp_path / "case.safetensors")
    torch.save({"state_dict": names.to_official(state)}, tmp_path / "checkpoint.pth")
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = parity(tmp_path)
    assert [row for row in report.rows if not row.ok] == []
    assert len(report.rows) == 2 * len(expected)
