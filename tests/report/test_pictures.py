import base64
import io

import numpy as np
import pytest
from PIL import Image

from diptych.report.pictures import data_uri, heat, overlay, shares


def _opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


@pytest.mark.parametrize(
    "mode, kind", [("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("I;16", "JPEG"), ("RGBA", "PNG")]
)
def test_any_mode_is_embedded_and_shrunk_in_proportion(mode, kind):
    picture = _opened(data_uri(Image.new(mode, (1000, 500)), longest=100))
    assert (picture.format, picture.size) == (kind, (100, 50))


def test_the_given_picture_is_left_as_it_was():
    picture = Image.new("RGB", (1000, 500))
    data_uri(picture)
    assert picture.size == (1000, 500)


def test_a_one_hot_plan_lights_its_patch_and_no_other_corner():
    plan = np.zeros((1, 3, 4))
    plan[0, 2, 1] = 0.2
    (share,) = shares(plan)
    assert share[2, 1] == 1
    alpha = np.asarray(overlay(share, 1.0, (400, 300)))[..., 3]
    assert alpha.shape == (300, 400)
    assert alpha[250, 150] == alpha.max() > 150  # the middle of patch (row 2, column 1)
    assert alpha[50, 50] == alpha[50, 350] == alpha[250, 350] == 0


def test_up_sampling_is_linear_between_patch_centres():
    alpha = np.asarray(overlay(np.array([[0.0, 1.0]]), 1.0, (200, 1)))[0, :, 3].astype(float)
    assert alpha[:50].max() < alpha[100] < alpha[149:].min()
    half = float(heat(np.array([[0.5]]))[0, 0, 3])
    assert alpha[99:101].mean() == pytest.approx(half, abs=2)


def test_shares_sum_to_one_whatever_the_mass_and_a_word_without_mass_stays_dark():
    plan = np.stack([np.full((2, 3), 7.0), np.zeros((2, 3)), np.full((2, 3), np.nan)])
    plan[2, 1, 1] = 1e-9
    found = shares(plan)
    assert found.sum(axis=(1, 2)) == pytest.approx([1, 0, 1])
    assert found[2, 1, 1] == 1
    assert not np.asarray(overlay(found[1], 0.0, (30, 20)))[..., 3].any()


def test_the_colour_map_rises_in_lightness():
    colour = heat(np.linspace(0, 1, 64)[None])[0].astype(float)
    luma = colour[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luma) > 0).all() and (np.diff(colour[:, 3]) >= 0).all()
