"""BEiT-3: Image as a Foreign Language (Wang et al., CVPR 2023), figure 2.

One multiway transformer for images, texts and pairs: image tokens come first, and each modality has its own
projections, norms and feed-forward networks (`modules.multiway.MultiwayBlock`). It is pre-trained by masked data
modelling only.

Differs from the paper: as in the released models, no block has a third expert for pairs, and no head predicts visual
tokens (pre-training was not released; `encode_masked` masks patches for it). As in the official code, padding enters as
zeros, and two rows at the head of each position table are never read (a habit of fairseq's). Differs from the official
code: the normal distribution that weights are drawn from is not cut at one standard deviation, nor do classifiers start
a thousand times smaller.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.models.beit3.config import BEiT3Config
from diptych.modules.attention import Context, KVCache, causal, expanded
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.init import init_transformer
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.multiway import MultiwayBlock, MultiwayFusion, norms, prefix_causal_mask
from diptych.modules.position import check_text_length, resize_bicubic_plain
from diptych.modules.tokens import FusedTokens, Span, Tokens
from diptych.protocols import UnsupportedOperation

NUM_UNUSED_POSITIONS = 2  # first rows of the official position tables


class BEiT3(nn.Module):
    """One multiway transformer over patch and word embeddings, with the heads that the config has."""

    def __init__(self, config: BEiT3Config, embedders: InputEmbeddings = OWN):
        super().__init__()
        dim, depth = config.dim, config.depth
        self.dim, self.vocab_size, self.mask_token_id = dim, config.vocab_size, config.mask_token_id
        self.patches = embedders.build_image(dim, config.grid) or PatchEmbedding(
            dim, config.patch_size, config.grid, resize_bicubic_plain, num_unused_positions=NUM_UNUSED_POSITIONS
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.word = embedders.build_word(dim) or nn.Embedding(config.vocab_size, dim)
        self.position = nn.Embedding(NUM_UNUSED_POSITIONS + config.text_length, dim)
        drop_path = [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]  # grows linearly with depth
        blocks = nn.ModuleList(MultiwayBlock(dim, config.num_heads, config.mlp_dim, drop_path=p) for p in drop_path)
        pooler = ImagePooler(dim) if config.pooling == "image" else BothFirst()
        self.transformer = MultiwayFusion(blocks, norms(dim, 1e-5) if config.final_norm else None, pooler)
        self.head = ClassifyPatches(dim, config.num_classes) if config.num_classes else None
        self.lm_head = nn.Linear(dim, config.vocab_size) if config.with_decoder else None
        self.apply(init_transformer)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, image: Image | Regions, text: Text) -> FusedTokens:
        """Both modalities after the transformer, pooled by `config.pooling`."""
        return self.fuse(self.encode_text(text), self.encode_image(image))

    def encode_image(self, image: Image | Regions) -> Tokens:
        """The class token and patch embeddings with positions, before the transformer."""
        return self.patches(image)

    def encode_masked(self, image: Image, masked: Bool[Tensor, "b cells"]) -> Tokens:
        """Image tokens as from `encode_image`, with the mask token at the `masked` patches (section 2.2)."""
        return self.patches(image, masked, self.mask_token)

    def encode_text(self, text: Text) -> Tokens:
        """Word embeddings with positions, before the transformer. Raises ValueError if a text is too long."""
        return self._embed(text, 0)

    def _embed(self, text: Text, start: int) -> Tokens:
        """Word embeddings with positions from `start` on; zero at padding."""
        text.check()
        n = text.ids.shape[1]
        check_text_length(start + n, self.position.num_embeddings - NUM_UNUSED_POSITIONS)
        first = NUM_UNUSED_POSITIONS + start
        values = self.word(text.ids) + self.position.weight[first : first + n]  # b n dim
        spans = (Span("text", "words", n),) if start else (Span("text", "cls", 1), Span("text", "words", n - 1))
        return Tokens.from_padded(values * text.mask[:, :, None], text.mask, *spans)

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """The tokens of one modality after the transformer."""
        return self.transformer.encode_unimodal(tokens)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """The class token of one modality after the transformer."""
        return (self.encode_unimodal(tokens).first(),)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Both modalities through the transformer as one sequence."""
        return self.transformer(text, image)

    def fuse_causal(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Both modalities, with the attention mask of captioning (section 3.1).

        No word attends to a later one, and no patch to a word.
        """
        return self.transformer.fuse_causal(text, image)

    def next_token_logits(
        self, text: Text, context: Context, cache: KVCache | None = None
    ) -> Float[Tensor, "b 1 vocab_size"]:
        """Logits of the one token after `text`, predicted at a [MASK] in its place; `context`: embedded images.

        No image token attends to a word, so a cache keeps the keys and values of the image too.

        Raises UnsupportedOperation if there is no LM head.
        """
        if self.lm_head is None:
            raise UnsupportedOperation(self.unsupported()["next_token_logits"])
        start = 0 if cache is None else cache.length
        mask_token = torch.full_like(text.ids[:, :1], self.mask_token_id)
        words = Text(
            torch.cat([text.ids, mask_token], 1), torch.cat([text.mask, torch.ones_like(mask_token).bool()], 1)
        )
        newest = self._embed(words, start)
        if cache is not None and start:
            n = newest.mask.shape[1]
            states = self.transformer.encode(newest, causal(n, cache.columns + n, newest.mask.device), cache)
        else:
            image = expanded(context)
            mask = prefix_causal_mask(newest.layout, image.layout)
            states = self.transformer.encode(Tokens.concat(image, newest), mask, cache)
        if cache is not None:
            cache.drop_columns(1)  # all but the [MASK]
        return self.lm_head(states.select("text").to_padded()[:, -1:])

    def unsupported(self) -> dict[str, str]:
        """The operations that this model lacks, each with the reason and the setting to change."""
        reasons = {
            "decode_hidden_states": (
                "BEiT-3 predicts one token at a time, at a [MASK]: train with objectives.masked_captions"
            )
        }
        if self.lm_head is None:
            reasons["next_token_logits"] = "this BEiT-3 was built without an LM head: set model.with_decoder True"
        return reasons

    def pretraining_heads(self) -> nn.ModuleDict:
        """The LM head, if there is one: the model's own, which `next_token_logits` reads too."""
        return nn.ModuleDict({} if self.lm_head is None else {"mlm": self.lm_head})

    def classify(self, image: Image) -> Float[Tensor, "b classes"]:
        """Class logits of each image. Raises UnsupportedOperation if there is no classifier."""
        if self.head is None:
            raise UnsupportedOperation("this BEiT-3 was built without a classifier: set model.num_classes above 0")
        return self.head(self.transformer.encode_unimodal(self.encode_image(image)))


class ImagePooler(nn.Module):
    """The image's class token: norm, linear, tanh."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.dense = nn.Linear(dim, dim)

    def forward(self, text: Tokens, image: Tokens) -> Float[Tensor, "b d"]:
        return self.dense(self.norm(image.first())).tanh()


class BothFirst(nn.Module):
    """The image's class token and the text's first token, concatenated."""

    def forward(self, text: Tokens, image: Tokens) -> Float[Tensor, "b d2"]:
        return torch.cat([image.first(), text.first()], 1)


class ClassifyPatches(nn.Module):
    """The mean of the patches: norm, linear."""

    def __init__(self, dim: int, num_classes: int, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, image: Tokens) -> Float[Tensor, "b classes"]:
        return self.linear(self.norm(image.select(name="patches").mean()))
