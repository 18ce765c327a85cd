"""BEiT-3: Image as a Foreign Language (Wang et al., CVPR 2023), figure 2.

One multiway transformer for images, texts and pairs: image tokens come first, and each modality has its own projections,
norms and feed-forward networks. It is trained on masked data alone.

Differs from the paper: as the released models, no block has a third expert for pairs, and no head predicts visual tokens
(pre-training was not released; `encode_hidden` hides patches for it). As the official code, padding enters
as zeros, and two rows at the head of each position table are never read (a habit of fairseq's). Differs from the official
code: the normal that weights are drawn from is not cut at one deviation, nor are classifiers begun a thousand times smaller.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.modules.attention import KVCache
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.init import init_transformer
from diptych.modules.multiway import MultiwayBlock, MultiwayFusion, causal_mask, norms
from diptych.modules.position import resize_bicubic_plain
from diptych.modules.tokens import FusedTokens, Span, Tokens
from diptych.protocols import UnsupportedOperation

UNREAD = 2  # rows at the head of the position tables


class BEiT3(nn.Module):
    """`grid`: rows and columns of the position grid; `text_length`: positions for texts. `pooling`: what heads of the pair
    read: "image", the pooled image class token (VQA), or "both", the two first tokens side by side (NLVR2).
    `final_norm` False: heads have a norm of their own (VQA, classification). `classes` 0: no classifier. `speaks`: a word
    head, for captions and for masked words. `mask`: the id of [MASK].
    """

    def __init__(
        self,
        dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_dim: int = 3072, patch_size: int = 16,
        grid: tuple[int, int] = (14, 14), vocab_size: int = 64010, text_length: int = 1022, pooling: str = "image",
        final_norm: bool = True, num_classes: int = 0, with_decoder: bool = False, mask_token_id: int = 64001, drop_path: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        if pooling not in ("image", "both"):
            raise ValueError(f"pooling is 'image' or 'both', not {pooling!r}")
        self.dim, self.vocab_size, self.mask_token_id = dim, vocab_size, mask_token_id
        self.patches = PatchEmbedding(dim, patch_size, grid, resize_bicubic_plain, unread=UNREAD)
        self.hidden_patch = nn.Parameter(torch.zeros(1, 1, dim))
        self.word = nn.Embedding(vocab_size, dim)
        self.position = nn.Embedding(UNREAD + text_length, dim)
        drops = [drop_path * i / max(depth - 1, 1) for i in range(depth)]  # stochastic depth grows with depth
        blocks = nn.ModuleList(MultiwayBlock(dim, num_heads, mlp_dim, drop_path=d) for d in drops)
        pooler = ImagePooler(dim) if pooling == "image" else BothFirst()
        self.transformer = MultiwayFusion(blocks, norms(dim, 1e-5) if final_norm else None, pooler)
        self.head = ClassifyPatches(dim, num_classes) if num_classes else None
        self.words = nn.Linear(dim, vocab_size) if with_decoder else None
        self.apply(init_transformer)
        nn.init.trunc_normal_(self.hidden_patch, std=0.02)

    def encode_image(self, image: Image | Regions) -> Tokens:
        """Embeds alone."""
        return self.patches(image)

    def encode_masked(self, image: Image, hidden: Bool[Tensor, "b cells"]) -> Tokens:
        """As `encode_image`; where `hidden`, the mask token stands for a patch (section 2.2)."""
        return self.patches(image, hidden, self.hidden_patch)

    def encode_text(self, text: Text) -> Tokens:
        return self._embed(text, 0)

    def _embed(self, text: Text, start: int) -> Tokens:
        n = text.ids.shape[1]
        if UNREAD + start + n > self.position.num_embeddings:
            raise ValueError(
                f"text of {start + n} tokens, but there are {self.position.num_embeddings - UNREAD} positions"
            )
        values = self.word(text.ids) + self.position.weight[UNREAD + start : UNREAD + start + n]
        spans = (Span("text", "words", n),) if start else (Span("text", "cls", 1), Span("text", "words", n - 1))
        return Tokens.from_padded(values * text.mask[:, :, None], text.mask, *spans)

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        return self.transformer.encode_unimodal(tokens)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        return (self.encode_unimodal(tokens).first(),)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        return self.transformer(text, image)

    def fuse_causal(self, text: Tokens, image: Tokens) -> FusedTokens:
        """As `fuse`, for captions: no word sees a later one, and the image sees no words (section 3.1)."""
        return self.transformer.fuse_causal(text, image)

    def next_token_logits(
        self, text: Text, context: Tokens, cache: KVCache | None = None
    ) -> Float[Tensor, "b 1 vocabulary"]:
        """Logits of the one token that follows all of `text`: a [MASK] stands in its place. `context`: embedded images."""
        if self.words is None:
            raise UnsupportedOperation(self.unsupported()["next_token_logits"])
        start = 0 if cache is None else cache.length
        blank = torch.full_like(text.ids[:, :1], self.mask_token_id)
        words = Text(torch.cat([text.ids, blank], 1), torch.cat([text.mask, torch.ones_like(blank).bool()], 1))
        newest = self._embed(words, start)
        if start:
            read = self.transformer.read(newest, self._later(newest, context, start), cache)
        else:
            read = self.transformer.read(
                Tokens.concat(context, newest), causal_mask(newest.layout, context.layout), cache
            )
        if cache is not None:
            cache.keep_columns(1)  # the [MASK]
        return self.words(read.select("text").to_padded()[:, -1:])

    def _later(self, newest: Tokens, context: Tokens, start: int) -> Bool[Tensor, "n m"]:
        n, seen = newest.mask.shape[1], context.mask.shape[1] + start
        return torch.ones(n, seen + n, dtype=torch.bool, device=newest.mask.device).tril(seen)

    def unsupported(self) -> dict[str, str]:
        found = {
            "decode_hidden_states": "a BEiT-3 writes one word at a time, where a [MASK] stands: give objectives.masked_captions the weight"
        }
        if self.words is None:
            found["next_token_logits"] = "this BEiT-3 was built without a word head: set model.with_decoder True"
        return found

    def pretraining_heads(self) -> nn.ModuleDict:
        """The word head, where there is one: the model's own, which `decode` speaks with."""
        return nn.ModuleDict({} if self.words is None else {"captions": self.words})

    def classify(self, image: Image) -> Float[Tensor, "b classes"]:
        if self.head is None:
            raise UnsupportedOperation("this BEiT-3 was built without a classifier (classes=0)")
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
    """The image's class token and the text's first, side by side."""

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
