"""Images as people pass them: paths, folders, globs, PIL images, arrays and tensors."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from diptych.config.data import ImageSettings
from diptych.data.images.decode import FORMATS, decode, from_pillow
from diptych.data.images.headers import has_image_signature
from diptych.data.images.loading import ImageFiles, ImageSource, PixelLoader, file_of, stem_of
from diptych.data.sources.base import BadSample, DataError
from diptych.data.sources.photos import Photos, open_photos
from tests.data.tiny_data import image_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs in a folder and a subfolder, with hidden files beside them."""
    place = tmp_path / "photos"
    (place / "more").mkdir(parents=True)
    (place / ".thumbnails").mkdir()
    names = ["10.jpg", "2.jpg", "more/B.png", "more/a.webp", ".hidden.jpg", ".thumbnails/2.jpg"]
    for seed, name in enumerate(names):
        format = {".png": "PNG", ".webp": "WEBP"}.get(Path(name).suffix, "JPEG")
        (place / name).write_bytes(image_bytes(seed, format=format))
    return place


def names(photos: Photos, root: Path) -> list[str]:
    return [os.path.relpath(photos.path(i), root) for i in range(len(photos))]


def pixels(image: Pillow.Image) -> np.ndarray:
    return np.asarray(image)


def error_of(photos: Photos, index: int = 0) -> str:
    with pytest.raises(BadSample) as raised:
        photos.image(index)
    assert raised.value.where == photos.where(index)
    return raised.value.why


def test_a_folder_is_read_with_its_subfolders_in_natural_order(folder: Path):
    photos = open_photos(folder)
    assert names(photos, folder) == ["2.jpg", "10.jpg", "more/a.webp", "more/B.png"]
    assert photos.name == "photos"
    assert isinstance(photos, ImageSource) and isinstance(photos, ImageFiles)
    for i in range(len(photos)):
        data = Path(photos.path(i)).read_bytes()
        assert np.array_equal(pixels(photos.image(i)), pixels(decode(data, "x")))
        assert file_of(photos, i) == data
        assert stem_of(photos, i) == Path(photos.path(i)).stem


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["2.jpg", "10.jpg"]),
        ("**/*.png", ["more/B.png"]),
        ("*", ["2.jpg", "10.jpg", "more/a.webp", "more/B.png"]),  # a folder that matches counts with its files
        ("**", ["2.jpg", "10.jpg", "more/a.webp", "more/B.png"]),  # a folder and its files match: each file once
        ("[0-9].jpg", ["2.jpg"]),
    ],
)
def test_a_glob(folder: Path, pattern: str, found: list[str]):
    assert names(open_photos(str(folder / pattern)), folder) == found


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(folder: Path):
    (folder / "[ab].jpg").write_bytes(image_bytes())
    (folder / "a.jpg").write_bytes(image_bytes())
    assert names(open_photos(str(folder / "[ab].jpg")), folder) == ["[ab].jpg"]


def test_links_that_lead_back_are_followed_once(folder: Path):
    (folder / "more" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "0 link").symlink_to(folder / "more", target_is_directory=True)
    (folder / "loop").symlink_to("loop")
    (folder / "same.jpg").symlink_to(folder / "2.jpg")
    photos = open_photos(folder)
    assert names(photos, folder) == ["2.jpg", "10.jpg", "loop", "more/a.webp", "more/B.png", "same.jpg"]
    assert "cannot be read" in error_of(photos, 2)
    assert np.array_equal(pixels(photos.image(5)), pixels(photos.image(0)))


def test_a_link_to_a_folder_elsewhere_is_followed(folder: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").write_bytes(image_bytes())
    (folder / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert "link/1.jpg" in names(open_photos(folder), folder)


def test_what_is_no_image_is_named_not_dropped(folder: Path):
    (folder / "notes.txt").write_text("no picture")
    (folder / "empty.jpg").touch()
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    photos = open_photos(folder)
    where = {Path(photos.path(i)).name: i for i in range(len(photos))}
    assert len(photos) == 9
    assert error_of(photos, where["empty.jpg"]) == "not a readable image: the file is empty"
    for name in ("notes.txt", "photo.heic"):
        assert error_of(photos, where[name]).startswith("not a readable image: none of JPEG")
    assert "cannot be read (No such file" in error_of(photos, where["gone.jpg"])
    assert error_of(photos, where["pipe.jpg"]) == "not a regular file"


def test_a_folder_that_cannot_be_listed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    listed = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "more":
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    photos = open_photos(folder)
    assert names(photos, folder) == ["2.jpg", "10.jpg", "more"]
    assert error_of(photos, 2) == "the folder cannot be listed (Permission denied)"
    with pytest.raises(BadSample):
        photos.file(2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("{}/empty", "no image there: no file is one of JPEG, PNG"),
        ("{}/texts", "no image there: none of its 1 files (first: {}/texts/a.jpg) is one of JPEG"),
        ("{}/nowhere.jpg", "no such file or folder, and no glob"),
        ("{}/*.gif", "no file matches this glob"),
        ("https://example.org/a.jpg", "addresses of the web are not read"),
        ("", "the image: expected a path, got ''"),
        ([], "no images: expected a path, a folder, a glob, a PIL image"),
        ([3], "images[0]: expected a path, a folder, a glob"),
        ({"image": 3}, "the image: expected a path"),
        (b"\xff\xd8\xff", "the image: expected a path, .* got bytes"),
        (np.zeros((4, 4, 3)), "the image: expected a uint8 array .* got float64 (4, 4, 3)"),
        (
            np.zeros((3, 4, 4), np.uint8),
            "expected a uint8 array (height, width, 3) or (height, width), got uint8 (3, 4",
        ),
        (np.zeros((4, 4, 4), np.uint8), "got uint8 (4, 4, 4)"),
        (np.zeros((0, 4), np.uint8), "got uint8 (0, 4)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "got uint8 (2, 4, 4, 3); pass a batch as a list of images"),
        ([np.zeros((4, 4), bool)], "images[0]: expected a uint8 array .* got bool (4, 4)"),
        (torch.zeros(4, 4, 3), "expected a tensor (3, height, width) .* got float32 (4, 4, 3)"),
        (torch.zeros(2, 3, 4, 4), "got float32 (2, 3, 4, 4); pass a batch as a list of images"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "got int64 (3, 4, 4)"),
        (torch.zeros(3, 0, 4), "got float32 (3, 0, 4)"),
        (torch.full((3, 4, 4), 1.5), "got float32 from 1.5 to 1.5; pass the pixels before normalization"),
        (torch.full((3, 4, 4), torch.nan), "got float32 from nan to nan"),
    ],
)
def test_what_cannot_be_opened_is_refused(tmp_path: Path, images: Any, message: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jpg").write_text("text")
    images = images.format(tmp_path) if isinstance(images, str) else images
    with pytest.raises(DataError) as raised:
        open_photos(images)
    expected = message.format(tmp_path).split(" .* ")
    assert all(part in str(raised.value) for part in expected), str(raised.value)
    assert "\n" not in str(raised.value)


def test_images_in_memory(tmp_path: Path):
    picture = decode(image_bytes(), "x")
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    same = [picture, array, tensor, tensor / 255, (tensor / 255).double(), array[:, ::-1][:, ::-1], tmp_path / "a.jpg"]
    photos = open_photos(same)
    assert len(photos) == len(same)
    for i in range(len(same)):
        assert np.array_equal(pixels(photos.image(i)), array)
    assert [photos.where(i) for i in (0, 5, 6)] == ["images[0]", "images[5]", str(tmp_path / "a.jpg")]
    assert [photos.stem(i) for i in (0, 5, 6)] == ["0", "5", "a"]
    assert photos.file(0) == photos.file(2) == f"{picture.size}".encode() + picture.tobytes()
    assert photos.file(6) == image_bytes()
    loader = PixelLoader(ImageSettings(shorter_side=32))
    assert np.array_equal(loader.load(photos, 1, None), loader.load(photos, 6, None))
    assert np.array_equal(pixels(pickle.loads(pickle.dumps(photos)).image(3)), array)
    assert photos.select([6, 0]).path(0) == str(tmp_path / "a.jpg")
    assert open_photos(photos, min_side=8).min_side == 8


def test_grey_arrays_become_rgb():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(pixels(open_photos(grey).image(0)), np.stack([grey] * 3, 2))


MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGB", "RGBA", "L", "P", "I;16"],
    "WEBP": ["RGB", "RGBA"],
    "TIFF": ["RGB", "RGBA", "L", "P", "CMYK", "I;16"],
}


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format, modes in MODES.items() for mode in modes])
def test_an_opened_image_becomes_the_same_as_its_file(tmp_path: Path, mode: str, orientation: int, format: str):
    values = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    grey = Pillow.fromarray(values[..., 0].astype(np.uint16) * 256)
    image = grey if mode == "I;16" else Pillow.fromarray(values).convert(mode)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image"
    # Pillow 13 maps uncompressed TIFFs into memory, and then turns them wrongly
    image.save(path, format, exif=exif, **({"compression": "tiff_lzw"} if format == "TIFF" else {}))
    with Pillow.open(path) as opened:
        before = dict(opened.info)
        assert np.array_equal(pixels(open_photos(opened).image(0)), pixels(open_photos(path).image(0)))
        assert before.items() <= opened.info.items()


def test_an_opened_image_over_a_limit_or_broken_is_a_bad_sample():
    with pytest.raises(BadSample, match="50 x 40 pixels is more than the limit of 100"):
        from_pillow(Pillow.new("RGB", (50, 40)), "x", max_pixels=100)
    assert error_of(open_photos(Pillow.new("RGB", (0, 4)))) == "0 x 4 pixels is no image"
    truncated = Pillow.open(io.BytesIO(image_bytes(size=(400, 300))[:2000]))
    assert "not a readable image" in error_of(open_photos(truncated))


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_recognised_by_its_first_bytes(format: str):
    assert has_image_signature(image_bytes(format=format)[:16])


@given(st.lists(st.integers(0, 10**12), unique=True, min_size=2))
def test_numbers_in_names_are_ordered_as_numbers(tmp_path_factory: pytest.TempPathFactory, numbers: list[int]):
    folder = tmp_path_factory.mktemp("numbers")
    for number in numbers:
        (folder / f"IMG {number}.gif").write_bytes(b"GIF89a")
    assert names(open_photos(folder), folder) == [f"IMG {number}.gif" for number in sorted(numbers)]


@given(st.data())
def test_every_file_of_a_random_tree_is_read_once_in_one_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    root = tmp_path_factory.mktemp("tree")
    name = st.text("aB7é☃ [", min_size=1, max_size=6).filter(str.strip)
    for parts in data.draw(st.lists(st.lists(name, min_size=1, max_size=3), min_size=1, max_size=8)):
        path = root.joinpath(*parts)
        if not any(parent.is_file() for parent in path.parents) and not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"GIF89a")
    expected = {str(path) for path in root.rglob("*") if path.is_file()}
    photos = open_photos(root)
    found = [photos.path(i) for i in range(len(photos))]
    assert len(found) == len(set(found)) and set(found) == expected
    link = root.parent / f"link to {root.name}"
    link.symlink_to(root, target_is_directory=True)
    assert names(open_photos(link), link) == names(photos, root)
