"""CLIP's ResNet against plain formulas, and independence of its features from padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.batch import Image, Text
from diptych.models.clip.config import CLIPResNetConfig
from diptych.models.clip.resnet import AttentionPool, Bottleneck, CLIPResNet
from diptych.modules.heads import ITCHead
from diptych.modules.tokens import packing


def model() -> CLIPResNet:
    torch.manual_seed(0)
    clip = CLIPResNet(CLIPResNetConfig(4, (1, 2, 1, 1), 4, (2, 3), 16, 1, 2, 32, 30, 9, 16)).eval()
    for part in clip.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean, part.running_var = torch.randn(part.num_features), 1 + torch.rand(part.num_features)
            torch.nn.init.normal_(part.weight, 1, 0.2)
            torch.nn.init.normal_(part.bias, 0, 0.2)
    return clip


def images(b: int = 3) -> Image:
    return Image.from_full(torch.randn(b, 3, 64, 96, generator=torch.Generator().manual_seed(1)))


def batch_norm(x: Tensor, norm: torch.nn.BatchNorm2d) -> Tensor:
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    shape = (1, -1, 1, 1)
    return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)


@torch.no_grad()
def test_forward_is_the_composition_of_the_methods():
    clip, image = model(), images()
    text = Text(torch.randint(0, 30, (2, 5)), torch.ones(2, 5, dtype=torch.bool))
    image_features, text_features = clip(image, text)
    assert image_features.shape == (3, 128) and text_features.shape == (2, 16)
    assert torch.equal(image_features, clip.pooled_features(clip.encode_image(image))[0])
    assert torch.equal(text_features, clip.pooled_features(clip.encode_text(text))[0])


def test_a_strided_bottleneck_averages_in_both_branches():
    torch.manual_seed(0)
    block, x = Bottleneck(8, 4, 2).eval(), torch.randn(2, 8, 6, 4)
    torch.nn.init.ones_(block.bn3.weight)
    assert block.downsample is not None
    branch = batch_norm(F.conv2d(x, block.conv1.weight), block.bn1).clamp(min=0)
    branch = batch_norm(F.conv2d(branch, block.conv2.weight, padding=1), block.bn2).clamp(min=0)
    branch = F.avg_pool2d(branch, 2)
    branch = batch_norm(F.conv2d(branch, block.conv3.weight), block.bn3)
    averaged = x.unflatten(3, (2, 2)).unflatten(2, (3, 2)).mean((3, 5))
    convolution, norm = block.downsample
    assert isinstance(convolution, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d)
    shortcut = batch_norm(F.conv2d(averaged, convolution.weight), norm)
    torch.testing.assert_close(block(x), (branch + shortcut).relu())


def test_attention_pooling_equals_torch_s_multi_head_attention():
    """With torch's own function and the same weights, as in the official code."""
    clip, image = model(), images()
    pool: AttentionPool = clip.pool
    projections = pool.attention.query, pool.attention.key, pool.attention.value
    for linear in projections:
        torch.nn.init.normal_(linear.bias)
    contrast = clip.pretraining_heads()["itc"]
    assert isinstance(contrast, ITCHead)
    project = contrast.image
    feature_map = clip.image(image.pixels)
    assert feature_map.shape == (3, 128, 2, 3)
    sequence = feature_map.flatten(2).permute(2, 0, 1)
    sequence = torch.cat([sequence.mean(0, keepdim=True), sequence]) + pool.position[0][:, None]
    expected, _ = F.multi_head_attention_forward(
        sequence[:1],
        sequence,
        sequence,
        128,
        4,
        None,
        torch.cat([x.bias for x in projections]),
        None,
        None,
        False,
        0.0,
        project.weight,
        project.bias,
        use_separate_proj_weight=True,
        q_proj_weight=projections[0].weight,
        k_proj_weight=projections[1].weight,
        v_proj_weight=projections[2].weight,
        training=False,
        need_weights=False,
    )
    for packed in (False, True):
        with packing(packed):
            (pooled,) = clip.pooled_features(clip.encode_image(image))
        torch.testing.assert_close(project(pooled), expected[0], rtol=1e-4, atol=1e-5)


def test_padding_of_the_canvas_changes_no_features():
    clip, image = model(), images()
    pixels = image.pixels.clone()
    pixels[1, :, :, 64:], pixels[2, :, 32:] = 9.0, -9.0
    mixed = Image(pixels, torch.tensor([[64, 96], [64, 64], [32, 96]]))
    for packed in (False, True):
        with packing(packed):
            (in_batch,) = clip.pooled_features(clip.encode_image(mixed))
            for i, (h, w) in enumerate(mixed.sizes.tolist()):
                (single,) = clip.pooled_features(clip.encode_image(Image.from_full(pixels[i : i + 1, :, :h, :w])))
                torch.testing.assert_close(in_batch[i : i + 1], single, rtol=1e-4, atol=1e-5)
