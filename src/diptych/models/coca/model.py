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
from diptych.modules.attention import Cache, Causal, causal
from diptych.modules.block import PreNormBlock, PreNormContextBlock, activation_named
from diptych.modules.init import init_blocks
from diptych.modules.pool import QueryPool, last
from diptych.modules.tokens import Pair, Span, Tokens


class UnimodalDecoder(nn.Module):
    """The first half of the decoder, which sees no image: words that see those before them, and a class token behind, that
    has seen them all.
    """

    def __init__(
        self, width: int, depth: int, heads: int, hidden: int, vocabulary: int, length: int, activation: str, pad: int
    ):
        super().__init__()
        self.pad = pad
        self.word = nn.Embedding(vocabulary, width)
        self.cls = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(length + 1, width))
        self.blocks = nn.ModuleList(
            PreNormBlock(width, heads, hidden, EPS, activation=activation_named(activation)) for _ in range(depth)
        )
        init_blocks(self.blocks, width)
        nn.init.normal_(self.word.weight, std=0.02)
        for grown in (self.cls, self.position):
            nn.init.normal_(grown, std=0.01)

    def embed(self, text: Text, start: int = 0) -> Float[Tensor, "b n d"]:
        end = start + text.ids.shape[1]
        if end >= len(self.position):
            raise ValueError(f"text of {end} tokens, but the model has positions for {len(self.position) - 1}")
        return self.word(text.ids.masked_fill(~text.real, self.pad)) + self.position[start:end]

    def forward(self, text: Text) -> Tokens:
        n = text.ids.shape[1]
        room = int(n + 1 < len(self.position))  # for the pad behind the longest text
        text = Text(F.pad(text.ids, (0, room)), F.pad(text.real, (0, room)))
        values = torch.cat([self.embed(text), (self.cls + self.position[-1]).expand(len(text), 1, -1)], 1)
        seen = F.pad(text.real & (text.ids != self.pad), (1, 0), value=True)
        allowed = causal(n + room + 1, n + room + 1, values.device) & seen[:, None]
        spans = Span("text", "words", n), Span("text", "pad", room), Span("text", "cls", 1)
        one = torch.ones_like(seen[:, :1])
        tokens = Tokens.of(values, torch.cat([text.real | seen[:, :-1], one], 1), *spans)
        for block in self.blocks:
            tokens = block(tokens, allowed)
        tokens = tokens.pick(torch.cat([text.real, one], 1))
        return Tokens.join(tokens.by_span(name="words"), tokens.by_span(name="cls"))

    def words(self, text: Text, cache: Cache) -> Tokens:
        """The newest words, without a class token; what came before is remembered."""
        tokens = Tokens.of(self.embed(text, cache.length), text.real, Span("text", "words", text.ids.shape[1]))
        for block in self.blocks:
            tokens = block(tokens, Causal(), cache=cache)
        return tokens


class CoCa(nn.Module):
    """`queries`: how many gather the image. `text_length` leaves out the [CLS]. `pad`: the id of the padding, which
    the [CLS] does not see. The defaults are open_clip's ViT-B/32.
    """

    def __init__(
        self,
        width: int = 768, depth: int = 12, heads: int = 12, hidden: int = 3072, patch: int = 32,
        grid: tuple[int, int] = (7, 7), queries: int = 256, pool_heads: int = 8, text_width: int = 512,
        text_depth: int = 12, text_heads: int = 8, text_hidden: int = 2048, vocabulary: int = 49408,
        text_length: int = 76, decoder_depth: int = 12, decoder_heads: int = 8, decoder_hidden: int = 2048,
        joint: int = 512, activation: str = "gelu", pad: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.text_width, self.joint = text_width, joint
        self.image = PatchTower(width, depth, heads, hidden, patch, grid, activation)
        self.pool = QueryPool(queries, text_width, pool_heads, width, EPS)
        self.image_norm = nn.LayerNorm(text_width, EPS)
        self.text = UnimodalDecoder(
            text_width, text_depth, text_heads, text_hidden, vocabulary, text_length, activation, pad
        )
        self.text_norm = nn.LayerNorm(text_width, EPS)
        self.reads = nn.ModuleList(
            PreNormBlock(text_width, decoder_heads, decoder_hidden, EPS, activation=activation_named(activation))
            for _ in range(decoder_depth)
        )
        self.looks = nn.ModuleList(
            PreNormContextBlock(text_width, decoder_heads, decoder_hidden, EPS, activation_named(activation))
            for _ in range(decoder_depth)
        )
        self.norm = nn.LayerNorm(text_width, EPS)
        self.vocabulary = nn.Linear(text_width, vocabulary, bias=False)
        init_blocks(self.reads, text_width)
        init_blocks(self.looks, text_width)
        nn.init.normal_(self.vocabulary.weight, std=0.02)

    def encode_image(self, image: Image | Regions) -> Tokens:
        return self.pool(self.image(image)).map(self.image_norm)

    def encode_text(self, text: Text) -> Tokens:
        return self.text(text)

    def unimodal(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """What the first query has gathered; the text's [CLS], normalised."""
        if tokens.layout.spans[0].modality == "image":
            return (tokens.first(),)
        return (self.text_norm(tokens.by_span(name="cls").first()),)

    def fuse(self, text: Tokens, image: Tokens) -> Pair:
        """Words after they have read on and looked at the image. The summary is the last word's, which has seen all."""
        words = self._read_on(text.by_span(name="words"), image)
        return Pair(words, image, last(words))

    def decode(self, text: Text, context: Tokens, cache: Cache | None = None) -> Float[Tensor, "b n vocabulary"]:
        return self.vocabulary(self.foretell(text, context, cache).canvas())

    def foretell(self, text: Text, context: Tokens, cache: Cache | None = None) -> Tokens:
        words = self.text(text).by_span(name="words") if cache is None else self.text.words(text, cache)
        return self._read_on(words, context, cache)

    def word_head(self) -> nn.Linear:
        return self.vocabulary

    def _read_on(self, words: Tokens, image: Tokens, cache: Cache | None = None) -> Tokens:
        gathered = image.by_span(name="queries")
        for read, look in zip(self.reads, self.looks, strict=True):
            words = look(read(words, Causal(), cache=cache), gathered)
        return words.map(self.norm)

    def heads(self) -> nn.ModuleDict:
        """Contrast alone: the captioner's words are the model's own."""
        return nn.ModuleDict({"contrast": contrast_head(self.text_width, self.text_width, self.joint)})
