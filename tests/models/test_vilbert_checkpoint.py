"""ViLBERT: official names at full size in both directions, and settings that cannot be inferred from shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError, load_state_dict
from diptych.models.importing import load_official, map_official
from diptych.models.vilbert import checkpoint as vilbert
from diptych.objectives.masked_regions import MaskedRegionLoss, class_target, feature_target
from diptych.tasks.multitask import MultiTask
from tests.parity.goldens import GOLDEN_CASES

FOLDER = GOLDEN_CASES / "vilbert_pretrain"
CONFIG = {
    "num_attention_heads": 4, "v_num_attention_heads": 4, "bi_num_attention_heads": 4,
    "t_biattention_id": [2, 4], "v_biattention_id": [0, 2],
}  # fmt: skip
Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}


def norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def network(first: str, second: str, dim: int, mlp_dim: int) -> Shapes:
    fc1, fc2 = linear(f"{first}.dense", mlp_dim, dim), linear(f"{second}.dense", dim, mlp_dim)
    return fc1 | fc2 | norm(f"{second}.LayerNorm", dim)


def layer(name: str, dim: int, mlp_dim: int) -> Shapes:
    parts = [linear(f"{name}.attention.self.{part}", dim, dim) for part in ("query", "key", "value")]
    own = linear(f"{name}.attention.output.dense", dim, dim) | norm(f"{name}.attention.output.LayerNorm", dim)
    return parts[0] | parts[1] | parts[2] | own | network(f"{name}.intermediate", f"{name}.output", dim, mlp_dim)


def coattention(name: str) -> Shapes:
    shapes = network(f"{name}.v_intermediate", f"{name}.v_output", 1024, 1024)
    shapes |= network(f"{name}.t_intermediate", f"{name}.t_output", 768, 3072)
    for stream, width in ((1, 1024), (2, 768)):
        for part in ("query", "key", "value"):
            shapes |= linear(f"{name}.biattention.{part}{stream}", 1024, width)
        shapes |= linear(f"{name}.biOutput.dense{stream}", width, 1024) | norm(
            f"{name}.biOutput.LayerNorm{stream}", width
        )
    return shapes


def unused(name: str) -> Shapes:
    return linear(f"{name}.biOutput.q_dense1", 1024, 1024) | linear(f"{name}.biOutput.q_dense2", 768, 1024)


ENCODER = {
    "bert.embeddings.word_embeddings.weight": (30522, 768), "bert.embeddings.position_embeddings.weight": (512, 768),
    "bert.embeddings.token_type_embeddings.weight": (2, 768), **norm("bert.embeddings.LayerNorm", 768),
    **linear("bert.v_embeddings.image_embeddings", 1024, 2048), **norm("bert.v_embeddings.LayerNorm", 1024),
    **linear("bert.v_embeddings.image_location_embeddings", 1024, 5),
    **linear("bert.t_pooler.dense", 1024, 768), **linear("bert.v_pooler.dense", 1024, 1024),
    **linear("cls.predictions.transform.dense", 768, 768), **norm("cls.predictions.transform.LayerNorm", 768),
    "cls.predictions.decoder.weight": (30522, 768), "cls.predictions.bias": (30522,),
    **linear("cls.bi_seq_relationship", 2, 1024), **linear("cls.imagePredictions.transform.dense", 1024, 1024),
    **norm("cls.imagePredictions.transform.LayerNorm", 1024), **linear("cls.imagePredictions.decoder", 1601, 1024),
}  # fmt: skip
for i in range(12):
    ENCODER |= layer(f"bert.encoder.layer.{i}", 768, 3072)
for i in range(6):
    ENCODER |= layer(f"bert.encoder.v_layer.{i}", 1024, 1024) | coattention(f"bert.encoder.c_layer.{i}")
UNUSED = {name: shape for i in range(6) for name, shape in unused(f"bert.encoder.c_layer.{i}").items()}


def classifier(name: str, inputs: int, num_answers: int) -> Shapes:
    fc = f"{name}.logit_fc"
    return linear(f"{fc}.0", 2048, inputs) | norm(f"{fc}.2", 2048) | linear(f"{fc}.3", num_answers, 2048)


TASKS = {
    "bert.embeddings.task_embeddings.weight": (20, 768),
    **classifier("vil_prediction", 1024, 3129), **classifier("vil_prediction_gqa", 1024, 1533),
    **classifier("vil_binary_prediction", 2048, 2), **linear("vil_logit", 1, 1024),
    **linear("vil_tri_prediction", 3, 1024), **linear("vision_logit", 1, 1024), **linear("linguisic_logit", 1, 768),
}  # fmt: skip


@pytest.mark.quick("official0-*")
@pytest.mark.parametrize(
    ("official", "task", "names", "published"),
    [(ENCODER, "pretraining", 533, 250_044_029), (ENCODER | TASKS, "tasks", 560, 268_028_859)],
)
def test_full_size_names_shapes_and_counts_are_the_published_ones(
    official: Shapes, task: str, names: int, published: int
):
    state = {name: torch.empty(shape, device="meta") for name, shape in (official | UNUSED).items()}
    assert len(state) == names
    arguments = vilbert.infer(state, {})
    assert vilbert.task(state) == task
    assert arguments["schedule"] == ((6, 0), (7, 1), (8, 2), (9, 3), (10, 4), (11, 5))
    assert [arguments[heads] for heads in ("num_heads", "image_num_heads", "coattention_num_heads")] == [12, 8, 8]
    table = vilbert.names(arguments, task)
    with torch.device("meta"):
        step = vilbert.build(arguments, task, table.from_official(state))
    load = {name: tuple(tensor.shape) for name, tensor in table.to_official(dict(step.named_parameters())).items()}
    assert load == official
    num_unused = sum(state[name].numel() for name in UNUSED)
    assert sum(parameter.numel() for parameter in step.parameters()) + num_unused == published


@pytest.fixture
def official() -> dict[str, Tensor]:
    return load_state_dict(FOLDER / "checkpoint.pth")


@pytest.mark.slow
def test_names_are_translated_both_ways(official: dict[str, Tensor]):
    imported = map_official("vilbert", official, CONFIG)
    back = imported.names.to_official(imported.state)
    assert all("q_dense" in name for name in imported.names.ignored)
    assert back.keys() == official.keys() - imported.names.ignored.keys()
    assert all(torch.equal(back[name], official[name]) for name in back)


@pytest.mark.slow
def test_the_two_logits_of_alignment_are_swapped(official: dict[str, Tensor]):
    ours = map_official("vilbert", official, CONFIG).state
    assert torch.equal(ours["heads.itm.linear.weight"], official["cls.bi_seq_relationship.weight"].flip(0))
    assert torch.equal(ours["heads.itm.linear.bias"], official["cls.bi_seq_relationship.bias"].flip(0))


@pytest.mark.slow
def test_the_region_targets_follow_from_the_head_s_width(official: dict[str, Tensor]):
    def target() -> object:
        step = map_official("vilbert", official, CONFIG).build()
        return next(o.target for o in step.objectives if isinstance(o, MaskedRegionLoss))  # type: ignore[union-attr]

    assert target() is class_target
    official["cls.imagePredictions.decoder.weight"] = torch.randn(40, 48)
    official["cls.imagePredictions.decoder.bias"] = torch.randn(40)
    assert target() is feature_target


@pytest.mark.slow
def test_weights_and_settings_that_do_not_fit_are_named(official: dict[str, Tensor]):
    def error_of(state: dict[str, Tensor], **config: object) -> str:
        with pytest.raises(WeightsError) as error:
            map_official("vilbert", state, CONFIG | config)
        return str(error.value)

    for odd in ([4, 2], [2], [2, 6], [-1, 4], "24", [True, 4]):
        assert "2 co-attention blocks cannot be placed" in error_of(official, t_biattention_id=odd)
    assert "cannot be placed" in error_of(official, v_biattention_id=[0, 4])
    gate = {"bert.encoder.v_layer.0.attention.self.dyLinear_q.weight": torch.ones(48, 32)}
    assert "unexpected weights: bert.encoder.v_layer.0" in error_of(official | gate)
    untied = official | {"cls.predictions.decoder.weight": torch.ones(210, 32)}
    assert "must be tied differ: cls.predictions.decoder.weight" in error_of(untied)
    lacking = {name: tensor for name, tensor in official.items() if "c_layer.1.biattention.key2" not in name}
    assert "meetings.1.image.attention.key" in error_of(lacking)
    assert "does not divide into 7 heads" in error_of(official, bi_num_attention_heads=7)


@pytest.mark.slow
def test_a_downstream_checkpoint_has_the_heads_of_its_file(official: dict[str, Tensor]):
    """vilbert_beta lacks some heads of 12-in-1."""
    some = linear_of("vil_tri_prediction", 2, 40)
    imported = map_official("vilbert", official | some | linear_of("vision_logit", 1, 48), CONFIG)
    step = imported.build()
    assert isinstance(step, MultiTask)
    assert imported.task == "tasks" and set(step.tasks) == {"entailment", "grounding"}
    assert set(step.heads) == {"itm", "mlm", "regions", "entailment", "grounding"}


def linear_of(name: str, out: int, inputs: int) -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in linear(name, out, inputs).items()}


def test_the_number_of_heads_is_required_without_a_config():
    with pytest.raises(WeightsError, match="give --num_heads"):
        load_official("vilbert", FOLDER / "checkpoint.pth")
