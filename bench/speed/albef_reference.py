"""ALBEF's pre-training step in plain PyTorch, as the official code runs it.

Texts are padded to the longest; every pair of the ITM loss computes keys and values of its image; the momentum model
runs over images, texts and masked texts; MLM logits are computed at every position. Modules have the official names of
weights.

Source: Li et al., NeurIPS 2021, and the structure of github.com/salesforce/ALBEF (models/model_pretrain.py, commit
b9727e4). Differs: masked words and negatives are inputs, so that both sides have the same; no dropout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, HEADS, HIDDEN, DEPTH, FUSION = 768, 12, 3072, 12, 6
MOMENTUM = 0.995


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention by plain products; `bias` is added to the scores."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(2, (HEADS, -1)).transpose(1, 2)  # b heads n d

    scores = split(query) @ split(key).transpose(2, 3) * (DIM // HEADS) ** -0.5
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return (weights @ split(value)).transpose(1, 2).flatten(2)


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(DIM, 1e-12)


class VisionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, 1e-6), nn.LayerNorm(DIM, 1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(DIM, 3 * DIM), "proj": nn.Linear(DIM, DIM)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(DIM, HIDDEN), "fc2": nn.Linear(HIDDEN, DIM)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn["proj"](attend(*self.attn["qkv"](self.norm1(x)).chunk(3, -1)))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class VisionTransformer(nn.Module):
    def __init__(self, patches: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, DIM))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, DIM, 16, 16)})
        self.blocks = nn.ModuleList(VisionBlock() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(DIM, 1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Attention(nn.Module):
    """Post-norm attention, of the text to itself or to an image."""

    def __init__(self):
        super().__init__()
        self.self = nn.ModuleDict({name: nn.Linear(DIM, DIM) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(DIM, DIM), "LayerNorm": norm()})

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        projected = self.self["query"](x), self.self["key"](context), self.self["value"](context)
        return self.output["LayerNorm"](self.output["dense"](attend(*projected, bias)) + x)


class Layer(nn.Module):
    def __init__(self, fusion: bool):
        super().__init__()
        self.attention = Attention()
        if fusion:
            self.crossattention = Attention()
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(DIM, HIDDEN)})
        self.output = nn.ModuleDict({"dense": nn.Linear(HIDDEN, DIM), "LayerNorm": norm()})

    def forward(self, x: Tensor, bias: Tensor, image: Tensor | None) -> Tensor:
        x = self.attention(x, x, bias)
        if image is not None:
            x = self.crossattention(x, image, None)
        return self.output["LayerNorm"](self.output["dense"](F.gelu(self.intermediate["dense"](x))) + x)


class Bert(nn.Module):
    """6 text layers and 6 fusion layers as one encoder."""

    def __init__(self, vocabulary: int):
        super().__init__()
        tables = {"word_embeddings": vocabulary, "position_embeddings": 512, "token_type_embeddings": 2}
        embeddings = {name: nn.Embedding(size, DIM) for name, size in tables.items()}
        self.embeddings = nn.ModuleDict({**embeddings, "LayerNorm": norm()})
        layers = nn.ModuleList(Layer(i >= DEPTH - FUSION) for i in range(DEPTH))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.text_layers, self.fusion_layers = list(layers[: DEPTH - FUSION]), list(layers[DEPTH - FUSION :])

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts after the text layers."""
        words = self.embeddings["word_embeddings"](ids)
        types = self.embeddings["token_type_embeddings"](torch.zeros_like(ids))
        positions = self.embeddings["position_embeddings"](torch.arange(ids.shape[1]))
        x = self.embeddings["LayerNorm"](words + types + positions)
        for layer in self.text_layers:
            x = layer(x, additive(mask), None)
        return x

    def fuse(self, x: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        """Texts after the fusion layers."""
        for layer in self.fusion_layers:
            x = layer(x, additive(mask), image)
        return x


def additive(mask: Tensor) -> Tensor:
    """−10000 at padding, which is added to the scores of attention (b 1 1 n)."""
    return (1.0 - mask[:, None, None, :].float()) * -10000.0


class TextEncoder(nn.Module):
    """The BERT and its MLM head, whose output layer is tied to the word embedding."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.bert = Bert(vocabulary)
        transform = nn.ModuleDict({"dense": nn.Linear(DIM, DIM), "LayerNorm": norm()})
        decoder = nn.Linear(DIM, vocabulary)
        decoder.weight = self.bert.embeddings.get_submodule("word_embeddings").weight  # type: ignore[assignment]
        predictions = nn.ModuleDict({"transform": transform, "decoder": decoder})
        predictions.register_parameter("bias", decoder.bias)
        self.cls = nn.ModuleDict({"predictions": predictions})

    def word_logits(self, ids: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        """Vocabulary logits at every position (b n vocabulary)."""
        hidden = self.bert.fuse(self.bert.encode(ids, mask), mask, image)
        transform = self.cls.get_submodule("predictions.transform")
        hidden = transform.get_submodule("LayerNorm")(F.gelu(transform.get_submodule("dense")(hidden)))
        return self.cls.get_submodule("predictions.decoder")(hidden)


class Reference(nn.Module):
    """One step: image-text contrast with a queue, matching with hard negatives, and masked words."""

    visual_encoder: VisionTransformer
    visual_encoder_m: VisionTransformer
    text_encoder: TextEncoder
    text_encoder_m: TextEncoder
    image_queue: Tensor
    text_queue: Tensor
    queue_ptr: Tensor

    def __init__(self, patches: int, vocabulary: int = 30522, embed_dim: int = 256, queue: int = 65536):
        super().__init__()
        for suffix in ("", "_m"):
            self.add_module(f"visual_encoder{suffix}", VisionTransformer(patches))
            self.add_module(f"text_encoder{suffix}", TextEncoder(vocabulary))
            self.add_module(f"vision_proj{suffix}", nn.Linear(DIM, embed_dim))
            self.add_module(f"text_proj{suffix}", nn.Linear(DIM, embed_dim))
        self.itm_head = nn.Linear(DIM, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.register_buffer("image_queue", torch.zeros(embed_dim, queue))
        self.register_buffer("text_queue", torch.zeros(embed_dim, queue))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        for name, parameter in self.named_parameters():
            if name.partition(".")[0].endswith("_m"):
                parameter.requires_grad_(False)

    def forward(
        self, pixels: Tensor, ids: Tensor, mask: Tensor, masked: Tensor, labels: Tensor, negatives: Tensor, alpha: float
    ) -> dict[str, Tensor]:
        """The three losses.

        Args:
            masked: ids with some words replaced; `labels` has the original ids there and −100 elsewhere.
            negatives: for each sample the index of a negative image, then of a negative text (2 b).
        """
        with torch.no_grad():
            self.temp.clamp_(0.001, 0.5)
        image = self.visual_encoder(pixels)
        text = self.text_encoder.bert.encode(ids, mask)
        with torch.no_grad():
            self.update_teacher()
            image_m = self.visual_encoder_m(pixels)
            text_m = self.text_encoder_m.bert.encode(ids, mask)
            features_m = self.features(image_m, text_m, "_m")
        contrast = self.contrast(self.features(image, text, ""), features_m, alpha)
        self.enqueue(*features_m)
        matching = self.matching(image, text, mask, *negatives.view(2, -1))
        with torch.no_grad():
            logits_m = self.text_encoder_m.word_logits(masked, mask, image_m)
        logits = self.text_encoder.word_logits(masked, mask, image)
        words = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        soft = -(F.log_softmax(logits.float(), -1) * logits_m.float().softmax(-1)).sum(-1)[labels != -100].mean()
        return {"itc": contrast, "itm": matching, "mlm": (1 - alpha) * words + alpha * soft}

    def features(self, image: Tensor, text: Tensor, suffix: str) -> tuple[Tensor, Tensor]:
        """Unit-norm features of both modalities, by the student ("") or the momentum model ("_m")."""
        of_image = self.get_submodule(f"vision_proj{suffix}")(image[:, 0])
        of_text = self.get_submodule(f"text_proj{suffix}")(text[:, 0])
        return F.normalize(of_image.float(), dim=-1), F.normalize(of_text.float(), dim=-1)

    def contrast(self, features: tuple[Tensor, Tensor], features_m: tuple[Tensor, Tensor], alpha: float) -> Tensor:
        """Soft cross-entropy over the momentum model's features of the batch and the queue."""
        images, texts = (
            torch.cat([own.T, queue.clone()], 1)
            for own, queue in zip(features_m, (self.image_queue, self.text_queue), strict=True)
        )
        losses = []
        for own, own_m, others in ((features[0], features_m[0], texts), (features[1], features_m[1], images)):
            with torch.no_grad():
                hard = torch.zeros(len(own), others.shape[1]).fill_diagonal_(1)
                targets = alpha * (own_m @ others / self.temp).softmax(1) + (1 - alpha) * hard
            losses.append(-(F.log_softmax(own @ others / self.temp, 1) * targets).sum(1).mean())
        return torch.stack(losses).mean()

    def matching(
        self, image: Tensor, text: Tensor, mask: Tensor, negative_images: Tensor, negative_texts: Tensor
    ) -> Tensor:
        """Cross-entropy over the true pairs and two mismatched pairs a sample, in two passes."""
        fuse = self.text_encoder.bert.fuse
        positive = fuse(text, mask, image)[:, 0]
        texts, masks = torch.cat([text, text[negative_texts]]), torch.cat([mask, mask[negative_texts]])
        negative = fuse(texts, masks, torch.cat([image[negative_images], image]))[:, 0]
        logits = self.itm_head(torch.cat([positive, negative])).float()
        return F.cross_entropy(logits, (torch.arange(len(logits)) < len(positive)).long())

    def update_teacher(self) -> None:
        """Moves every parameter of the momentum model towards the student's."""
        for name in ("visual_encoder", "vision_proj", "text_encoder", "text_proj"):
            own, teacher = self.get_submodule(name).parameters(), self.get_submodule(f"{name}_m").parameters()
            for parameter, moved in zip(own, teacher, strict=True):
                moved.data = moved.data * MOMENTUM + parameter.data * (1 - MOMENTUM)

    def enqueue(self, image: Tensor, text: Tensor) -> None:
        """Replaces the oldest features of the queues; their size is a multiple of the batch's."""
        start = int(self.queue_ptr)
        self.image_queue[:, start : start + len(image)] = image.T
        self.text_queue[:, start : start + len(text)] = text.T
        self.queue_ptr[0] = (start + len(image)) % self.image_queue.shape[1]
