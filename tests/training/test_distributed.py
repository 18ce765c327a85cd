"""The precision of "auto", by the environment and the CPU instructions that oneDNN may use; training computes in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diptych.cli import main
from diptych.training.distributed import uses_bf16
from tests.training.toy import Toy, run, settings

CPU = torch.device("cpu")
ISA = "ONEDNN_MAX_CPU_ISA"
ENVIRONMENT = ("DIPTYCH_BF16", ISA, "DNNL_MAX_CPU_ISA")
AMX = {"avx512_bf16": True, "amx_bf16": True}


def auto(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], module: nn.Module | None = None, **environment: str
) -> bool:
    """The meaning of "auto" on a CPU with these instructions, in this environment."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    return uses_bf16(CPU, "auto", module)


@pytest.mark.parametrize("able", [{}, {"avx512_f": True}, AMX], ids=["an old one", "without bf16", "with bf16"])
def test_the_environment_variable_decides_on_every_cpu(monkeypatch: pytest.MonkeyPatch, able: dict[str, bool]):
    for isa in ("", "AVX2", "DEFAULT"):
        assert auto(monkeypatch, able, DIPTYCH_BF16="on", ONEDNN_MAX_CPU_ISA=isa)
        assert not auto(monkeypatch, able, DIPTYCH_BF16="off", ONEDNN_MAX_CPU_ISA=isa)


@pytest.mark.parametrize("value", ["on", "off"])
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_environment_variable_decides_on_every_device(monkeypatch: pytest.MonkeyPatch, device: str, value: str):
    monkeypatch.setenv("DIPTYCH_BF16", value)
    assert uses_bf16(torch.device(device), "auto") == (value == "on")


def test_on_a_cpu_only_wide_models_are_computed_in_bf16(monkeypatch: pytest.MonkeyPatch):
    wide, narrow = (nn.ModuleList([nn.Linear(width, 8)]) for width in (2048, 1024))
    assert auto(monkeypatch, AMX, module=wide) and not auto(monkeypatch, AMX, module=narrow)
    assert auto(monkeypatch, AMX, module=narrow, DIPTYCH_BF16="on")
    assert uses_bf16(CPU, "bf16", narrow) and not uses_bf16(CPU, "fp32", wide)


@pytest.mark.parametrize("value", ["on", "off", "", "maybe"])
def test_an_explicit_precision_is_used(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("DIPTYCH_BF16", value)
    assert uses_bf16(CPU, "bf16") and not uses_bf16(CPU, "fp32")


@pytest.mark.parametrize("value", ["On", "1", "true", "yes", "bf16", " on"])
def test_other_values_are_errors(monkeypatch: pytest.MonkeyPatch, value: str):
    with pytest.raises(ValueError, match=r"DIPTYCH_BF16 is .*; set it to 'on' or 'off'"):
        auto(monkeypatch, AMX, DIPTYCH_BF16=value)


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({}, False),
        ({"avx2": True, "avx512_f": True}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        (AMX, True),
    ],
)
def test_without_the_variable_the_cpu_s_instructions_decide(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: bool
):
    assert auto(monkeypatch, able) is auto(monkeypatch, able, DIPTYCH_BF16="") is expected


@pytest.mark.parametrize("name", [ISA, "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "avx2", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_onednn_limited_below_bf16_means_no_bf16(monkeypatch: pytest.MonkeyPatch, name: str, isa: str):
    assert not auto(monkeypatch, AMX, None, **{name: isa})


@pytest.mark.parametrize("isa", ["", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_AMX", "AVX10_1_512", "a misspelt one"])
def test_a_higher_limit_of_onednn_changes_nothing(monkeypatch: pytest.MonkeyPatch, isa: str):
    assert auto(monkeypatch, AMX, ONEDNN_MAX_CPU_ISA=isa)
    assert not auto(monkeypatch, {}, ONEDNN_MAX_CPU_ISA=isa)


def test_the_newer_name_of_onednn_s_variable_takes_precedence(monkeypatch: pytest.MonkeyPatch):
    assert auto(monkeypatch, AMX, ONEDNN_MAX_CPU_ISA="DEFAULT", DNNL_MAX_CPU_ISA="AVX2")
    assert not auto(monkeypatch, AMX, ONEDNN_MAX_CPU_ISA="", DNNL_MAX_CPU_ISA="AVX2")


def test_without_onednn_auto_is_fp32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not auto(monkeypatch, AMX)


@pytest.mark.parametrize(
    ("forced", "precision", "expected"),
    [
        ("on", "auto", torch.bfloat16),
        ("off", "auto", torch.float32),
        ("on", "fp32", torch.float32),
        ("off", "bf16", torch.bfloat16),
    ],
)
def test_training_computes_in_the_chosen_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forced: str, precision: str, expected: torch.dtype
):
    monkeypatch.setenv("DIPTYCH_BF16", forced)
    toy, dtypes = Toy(), set()
    toy.hidden.register_forward_hook(lambda module, inputs, made: dtypes.add(made.dtype))
    run(tmp_path, toy, settings(steps=1, precision=precision))
    assert dtypes == {expected}
    assert {p.dtype for p in toy.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "expected"),
    [({ISA: "AVX2"}, "False"), ({"DIPTYCH_BF16": "on", ISA: "AVX2"}, "True"), ({"DIPTYCH_BF16": "off"}, "False")],
)
def test_precision_in_a_new_process(environment: dict[str, str], expected: str):
    code = "import torch; from diptych.training.distributed import *; print(uses_bf16(torch.device('cpu'), 'auto'))"
    inherited = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    output = subprocess.check_output([sys.executable, "-c", code], env=inherited | environment, text=True, timeout=240)
    assert output.strip() == expected


def test_an_invalid_variable_is_an_error_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DIPTYCH_BF16", "yes")
    small = ["--model.dim", "16", "--model.depth", "1", "--model.num_heads", "2", "--model.mlp_dim", "16"]
    words = [
        "pretrain",
        "vilt.tiny",
        *small,
        "--data",
        "scenes:8",
        "--batch_size",
        "8",
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("diptych: ") and "DIPTYCH_BF16 is 'yes'" in line
    assert not (tmp_path / "run" / "run.json").exists()
