"""CoCa: Contrastive Captioners are Image-Text Foundation Models (Yu et al., TMLR 2022), figure 2.

A ViT whose tokens are pooled by learned queries, the first of them for the contrastive loss, the others for the
captioner; a causal unimodal text decoder with a [CLS] appended; and a multimodal text decoder that continues from its
words and cross-attends to the image.

Differs: the paper's code was never released, so this is open_clip's, whose weights were. There one pooler has all
queries (the paper: one pooler for each use); the words passed on to the multimodal decoder are not normalised; the
[CLS] has the last position, and, as those weights were trained, it attends to the first pad after its text instead of
itself, and to no token after one that has the padding's id ("!" has it too). The LM head, whose weights open_clip
leaves uninitialised, starts from a small normal distribution.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.models.clip.model import EPS, PatchTower, contrast_head
from diptych.models.coca.config import CoCaConfig
from diptych.modules.attention import Causal, Context, KVCache, causal
from diptych.modules.block import PreNormBlock, PreNormContextBlock, activation_named
from diptych.modules.init import init_blocks
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.pool import QueryPool, last_token
from diptych.modules.position import check_text_length
from diptych.modules.tokens import FusedTokens, Span, Tokens


class CoCaOutput(NamedTuple):
    """What figure 2 ends with: the inputs of the contrastive loss, and the captioner's logits."""

    image_features: Float[Tensor, "b d"]
    text_features: Float[Tensor, "b d"]
    logits: Float[Tensor, "b n vocab_size"]  # of the token after each token of the text


class UnimodalDecoder(nn.Module):
    """The unimodal half of the text decoder: causal words, and a [CLS] at the end that attends to all of them.

    `word`: word embeddings instead of its own.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        vocab_size: int,
        length: int,
        activation: str,
        pad_token_id: int,
        word: Any = None,  # an nn.Module from token ids to vectors, instead of an nn.Embedding
    ):
        super().__init__()
        self.pad_token_id = pad_token_id
        self.word = word or nn.Embedding(vocab_size, dim)
        self.cls = nn.Parameter(torch.empty(dim))
        self.position = nn.Parameter(torch.empty(length + 1, dim))
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, num_heads, mlp_dim, EPS, activation=activation_named(activation)) for _ in range(depth)
        )
        init_blocks(self.blocks, dim)
        if isinstance(self.word, nn.Embedding):
            nn.init.normal_(self.word.weight, std=0.02)
        for embedding in (self.cls, self.position):
            nn.init.normal_(embedding, std=0.01)

    def embed(self, text: Text, start: int = 0) -> Float[Tensor, "b n d"]:
        """Words and positions from `start` on. Raises ValueError if a text is longer than the position table."""
        text.check()
        end = start + text.ids.shape[1]
        check_text_length(end, len(self.position) - 1)  # the last position is the [CLS]'s
        return self.word(text.ids.masked_fill(~text.mask, self.pad_token_id)) + self.position[start:end]

    def forward(self, text: Text) -> Tokens:
        """The words, then the [CLS]: b (n + 1) tokens."""
        n = text.ids.shape[1]
        num_pads = int(n + 1 < len(self.position))  # one pad follows the longest text, as in the official code
        text = Text(F.pad(text.ids, (0, num_pads)), F.pad(text.mask, (0, num_pads)))
        cls = (self.cls + self.position[-1]).expand(len(text), 1, -1)
        values = torch.cat([self.embed(text), cls], 1)  # b (n + num_pads + 1) dim
        # a causal mask in which the [CLS], the last column, attends to no pad
        not_pad = F.pad(text.mask & (text.ids != self.pad_token_id), (1, 0), value=True)
        allowed = causal(values.shape[1], values.shape[1], values.device) & not_pad[:, None]
        spans = Span("text", "words", n), Span("text", "pad", num_pads), Span("text", "cls", 1)
        cls_mask = torch.ones_like(not_pad[:, :1])
        tokens = Tokens.from_padded(values, torch.cat([text.mask | not_pad[:, :-1], cls_mask], 1), *spans)
        for block in self.blocks:
            tokens = block(tokens, allowed)
        tokens = tokens.apply_mask(torch.cat([text.mask, cls_mask], 1))
        return Tokens.concat(tokens.select(name="words"), tokens.select(name="cls"))

    def decode_next(self, text: Text, cache: KVCache) -> Tokens:
        """The newest words, without a [CLS]; the keys and values of earlier words come from `cache`."""
        tokens = Tokens.from_padded(self.embed(text, cache.length), text.mask, Span("text", "words", text.ids.shape[1]))
        for block in self.blocks:
            tokens = block(tokens, Causal(), cache=cache)
        return tokens


class CoCa(nn.Module):
    """Image encoder with attentional pooling, unimodal text decoder and multimodal text decoder."""

    def __init__(self, config: CoCaConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        dim = config.text_dim
        self.text_dim, self.embed_dim = dim, config.embed_dim
        self.image = PatchTower(
            config.dim,
            config.depth,
            config.num_heads,
            config.mlp_dim,
            config.patch_size,
            config.grid,
            config.activation,
            patches=embedders.build_image(config.dim, config.grid),
        )
        self.pool = QueryPool(config.num_queries, dim, config.pool_num_heads, config.dim, EPS)
        self.image_norm = nn.LayerNorm(dim, EPS)
        self.text = UnimodalDecoder(
            dim,
            config.text_depth,
            config.text_num_heads,
            config.text_mlp_dim,
            config.vocab_size,
            config.text_length,
            config.activation,
            config.pad_token_id,
            embedders.build_word(dim),
        )
        self.text_norm = nn.LayerNorm(dim, EPS)
        num_heads, mlp_dim = config.decoder_num_heads, config.decoder_mlp_dim
        self.self_blocks = nn.ModuleList(
            PreNormBlock(dim, num_heads, mlp_dim, EPS, activation=activation_named(config.activation))
            for _ in range(config.decoder_depth)
        )
        self.cross_blocks = nn.ModuleList(
            PreNormContextBlock(dim, num_heads, mlp_dim, EPS, activation_named(config.activation))
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, EPS)
        self.lm_head = nn.Linear(dim, config.vocab_size, bias=False)
        init_blocks(self.self_blocks, dim)
        init_blocks(self.cross_blocks, dim)
        nn.init.normal_(self.lm_head.weight, std=0.02)

    def forward(self, image: Image | Regions, text: Text) -> CoCaOutput:
        """Pooled features of both modalities, and the captioner's logits of the token after each token of the text."""
        image_tokens, text_tokens = self.encode_image(image), self.encode_text(text)
        (image_features,) = self.pooled_features(image_tokens)  # b text_dim
        (text_features,) = self.pooled_features(text_tokens)  # b text_dim
        logits = self.lm_head(self.fuse(text_tokens, image_tokens).text.to_padded())  # b n vocab_size
        return CoCaOutput(image_features, text_features, logits)

    def encode_image(self, image: Image | Regions) -> Tokens:
        """The image after attentional pooling: b num_queries tokens."""
        return self.pool(self.image(image)).map(self.image_norm)

    def encode_text(self, text: Text) -> Tokens:
        """The words and the [CLS] after the unimodal text decoder."""
        return self.text(text)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """The first query's output; the text's [CLS], normalised."""
        if tokens.layout.spans[0].modality == "image":
            return (tokens.first(),)
        return (self.text_norm(tokens.select(name="cls").first()),)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        """The words after the multimodal text decoder, pooled from the last word, which attends to all others."""
        words = self.decode_encoded(text, image)
        return FusedTokens(words, image, last_token(words))

    def next_token_logits(
        self, text: Text, context: Context, cache: KVCache | None = None
    ) -> Float[Tensor, "b n vocab_size"]:
        """Logits of the token after each token of `text`; `context`: the encoded image."""
        return self.lm_head(self.decode_hidden_states(text, context, cache).to_padded())

    def decode_hidden_states(self, text: Text, context: Context, cache: KVCache | None = None) -> Tokens:
        """The words after both decoders, before the LM head."""
        if cache is None:
            return self.decode_encoded(self.text(text), context)
        return self._decode_multimodal(self.text.decode_next(text, cache), context, cache)

    def decode_encoded(self, text: Tokens, context: Context) -> Tokens:
        """The words after both decoders, from texts after `encode_text`."""
        return self._decode_multimodal(text.select(name="words"), context)

    def get_output_embeddings(self) -> nn.Linear:
        """The captioner's LM head."""
        return self.lm_head

    def _decode_multimodal(self, words: Tokens, image: Context, cache: KVCache | None = None) -> Tokens:
        """The multimodal text decoder: causal self-attention, then cross-attention to all queries but the first."""
        queries = image.select(name="queries")
        for self_block, cross_block in zip(self.self_blocks, self.cross_blocks, strict=True):
            words = cross_block(self_block(words, Causal(), cache=cache), queries)
        return words.map(self.norm)

    def pretraining_heads(self) -> nn.ModuleDict:
        """The ITC head only: the LM head is part of the captioner."""
        return nn.ModuleDict({"itc": contrast_head(self.text_dim, self.text_dim, self.embed_dim)})
