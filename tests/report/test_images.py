"""Images as data URIs, and heat maps of a transport plan."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from diptych.report.images import data_uri, heat_colours, heat_overlay, normalize_plan


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("I;16", "JPEG"), ("RGBA", "PNG"), ("LA", "PNG")],
)
def test_an_image_of_any_mode_is_embedded_and_shrunk_in_proportion(mode: str, kind: str):
    image = decode(data_uri(Image.new(mode, (1000, 500)), longest=100))
    assert (image.format, image.size) == (kind, (100, 50))


def test_the_image_itself_is_not_changed():
    image = Image.new("RGB", (1000, 500))
    data_uri(image)
    assert image.size == (1000, 500)


def test_a_one_hot_plan_colours_its_patch_and_no_corner_beyond():
    plan = np.zeros((1, 3, 4))
    plan[0, 2, 1] = 0.2
    (shares,) = normalize_plan(plan)
    assert shares[2, 1] == 1
    alpha = np.asarray(heat_overlay(shares, 1.0, (400, 300)))[..., 3]
    assert alpha.shape == (300, 400)
    assert alpha[250, 150] == alpha.max() > 150  # the middle of patch (row 2, column 1)
    assert alpha[50, 50] == alpha[50, 350] == alpha[250, 350] == 0


def test_upsampling_is_linear_between_patch_centres():
    alpha = np.asarray(heat_overlay(np.array([[0.0, 1.0]]), 1.0, (200, 1)))[0, :, 3].astype(float)
    assert alpha[:50].max() < alpha[100] < alpha[149:].min()
    half = float(heat_colours(np.array([[0.5]]))[0, 0, 3])
    assert alpha[99:101].mean() == pytest.approx(half, abs=2)


def test_shares_sum_to_one_for_any_mass_and_a_token_without_mass_stays_clear():
    plan = np.stack([np.full((2, 3), 7.0), np.zeros((2, 3)), np.full((2, 3), np.nan)])
    plan[2, 1, 1] = 1e-9
    shares = normalize_plan(plan)
    assert shares.sum(axis=(1, 2)) == pytest.approx([1, 0, 1])
    assert shares[2, 1, 1] == 1
    assert not np.asarray(heat_overlay(shares[1], 0.0, (30, 20)))[..., 3].any()


def test_lightness_and_opacity_rise_with_the_value():
    colours = heat_colours(np.linspace(0, 1, 64)[None])[0].astype(float)
    luminance = colours[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all() and (np.diff(colours[:, 3]) >= 0).all()
    assert colours[0, 3] == 0
