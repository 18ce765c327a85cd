"""CoCa: Contrastive Captioners are Image-Text Foundation Models (Yu et al., TMLR 2022), figure 2.

A ViT whose tokens are gathered by learned queries, the first of them for contrast, the others for the captioner; a causal
text decoder that reads text alone, with a [CLS] behind it; and one that goes on from its words and attends to the image.

Differs: the paper's code was never released, so this is open_clip's, whose weights were. There one pooler has all
queries (the paper: one pooler for each use); the words that go on are not normalised; the [CLS] lies in the last
position, and, as those weights were trained, it sees the first pad behind its text in place of itself, and no token that
stands behind one of the padding's id ("!" has it too). The vocabulary's weights, which open_clip leaves as memory held
them, begin small.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.models.clip.model import EPS, PatchTower, contrast_head
from diptych.modules.attention import Causal, KVCache, causal
from diptych.modules.block import PreNormBlock, PreNormContextBlock, activation_named
from diptych.modules.init import init_blocks
from diptych.modules.pool import QueryPool, last_token
from diptych.modules.tokens import FusedTokens, Span, Tokens


class UnimodalDecoder(nn.Module):
    """The first half of the decoder, which sees no image: words that see those before them, and a class token behind, that
    has seen them all.
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
    ):
        super().__init__()
        self.pad_token_id = pad_token_id
        self.word = nn.Embedding(vocab_size, dim)
        self.cls = nn.Parameter(torch.empty(dim))
        self.position = nn.Parameter(torch.empty(length + 1, dim))
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, num_heads, mlp_dim, EPS, activation=activation_named(activation)) for _ in range(depth)
        )
        init_blocks(self.blocks, dim)
        nn.init.normal_(self.word.weight, std=0.02)
        for grown in (self.cls, self.position):
            nn.init.normal_(grown, std=0.01)

    def embed(self, text: Text, start: int = 0) -> Float[Tensor, "b n d"]:
        end = start + text.ids.shape[1]
        if end >= len(self.position):
            raise ValueError(f"text of {end} tokens, but the model has positions for {len(self.position) - 1}")
        return self.word(text.ids.masked_fill(~text.mask, self.pad_token_id)) + self.position[start:end]

    def forward(self, text: Text) -> Tokens:
        n = text.ids.shape[1]
        room = int(n + 1 < len(self.position))  # for the pad behind the longest text
        text = Text(F.pad(text.ids, (0, room)), F.pad(text.mask, (0, room)))
        values = torch.cat([self.embed(text), (self.cls + self.position[-1]).expand(len(text), 1, -1)], 1)
        seen = F.pad(text.mask & (text.ids != self.pad_token_id), (1, 0), value=True)
        allowed = causal(n + room + 1, n + room + 1, values.device) & seen[:, None]
        spans = Span("text", "words", n), Span("text", "pad", room), Span("text", "cls", 1)
        one = torch.ones_like(seen[:, :1])
        tokens = Tokens.from_padded(values, torch.cat([text.mask | seen[:, :-1], one], 1), *spans)
        for block in self.blocks:
            tokens = block(tokens, allowed)
        tokens = tokens.apply_mask(torch.cat([text.mask, one], 1))
        return Tokens.concat(tokens.select(name="words"), tokens.select(name="cls"))

    def words(self, text: Text, cache: KVCache) -> Tokens:
        """The newest words, without a class token; what came before is remembered."""
        tokens = Tokens.from_padded(self.embed(text, cache.length), text.mask, Span("text", "words", text.ids.shape[1]))
        for block in self.blocks:
            tokens = block(tokens, Causal(), cache=cache)
        return tokens


class CoCa(nn.Module):
    """`queries`: how many gather the image. `text_length` leaves out the [CLS]. `pad`: the id of the padding, which
    the [CLS] does not see. The defaults are open_clip's ViT-B/32.
    """

    def __init__(
        self,
        dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_dim: int = 3072, patch_size: int = 32,
        grid: tuple[int, int] = (7, 7), num_queries: int = 256, pool_num_heads: int = 8, text_dim: int = 512,
        text_depth: int = 12, text_num_heads: int = 8, text_mlp_dim: int = 2048, vocab_size: int = 49408,
        text_length: int = 76, decoder_depth: int = 12, decoder_num_heads: int = 8, decoder_mlp_dim: int = 2048,
        embed_dim: int = 512, activation: str = "gelu", pad_token_id: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.text_dim, self.embed_dim = text_dim, embed_dim
        self.image = PatchTower(dim, depth, num_heads, mlp_dim, patch_size, grid, activation)
        self.pool = QueryPool(num_queries, text_dim, pool_num_heads, dim, EPS)
        self.image_norm = nn.LayerNorm(text_dim, EPS)
        self.text = UnimodalDecoder(
            text_dim, text_depth, text_num_heads, text_mlp_dim, vocab_size, text_length, activation, pad_token_id
        )
        self.text_norm = nn.LayerNorm(text_dim, EPS)
        self.reads = nn.ModuleList(
            PreNormBlock(text_dim, decoder_num_heads, decoder_mlp_dim, EPS, activation=activation_named(activation))
            for _ in range(decoder_depth)
        )
        self.looks = nn.ModuleList(
            PreNormContextBlock(text_dim, decoder_num_heads, decoder_mlp_dim, EPS, activation_named(activation))
            for _ in range(decoder_depth)
        )
        self.norm = nn.LayerNorm(text_dim, EPS)
        self.vocabulary = nn.Linear(text_dim, vocab_size, bias=False)
        init_blocks(self.reads, text_dim)
        init_blocks(self.looks, text_dim)
        nn.init.normal_(self.vocabulary.weight, std=0.02)

    def encode_image(self, image: Image | Regions) -> Tokens:
        return self.pool(self.image(image)).map(self.image_norm)

    def encode_text(self, text: Text) -> Tokens:
        return self.text(text)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """What the first query has gathered; the text's [CLS], normalised."""
        if tokens.layout.spans[0].modality == "image":
            return (tokens.first(),)
        return (self.text_norm(tokens.select(name="cls").first()),)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Words after they have read on and looked at the image. The summary is the last word's, which has seen all."""
        words = self._read_on(text.select(name="words"), image)
        return FusedTokens(words, image, last_token(words))

    def next_token_logits(
        self, text: Text, context: Tokens, cache: KVCache | None = None
    ) -> Float[Tensor, "b n vocabulary"]:
        return self.vocabulary(self.decode_hidden_states(text, context, cache).to_padded())

    def decode_hidden_states(self, text: Text, context: Tokens, cache: KVCache | None = None) -> Tokens:
        words = self.text(text).select(name="words") if cache is None else self.text.words(text, cache)
        return self._read_on(words, context, cache)

    def lm_head(self) -> nn.Linear:
        return self.vocabulary

    def _read_on(self, words: Tokens, image: Tokens, cache: KVCache | None = None) -> Tokens:
        gathered = image.select(name="queries")
        for read, look in zip(self.reads, self.looks, strict=True):
            words = look(read(words, Causal(), cache=cache), gathered)
        return words.map(self.norm)

    def pretraining_heads(self) -> nn.ModuleDict:
        """Contrast alone: the captioner's words are the model's own."""
        return nn.ModuleDict({"contrast": contrast_head(self.text_dim, self.text_dim, self.embed_dim)})
