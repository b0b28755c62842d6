"""Photographs: read as they are, refused where they are none, varied by the generator alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from de_plugin.errors import ArgumentError, DataError
from de_plugin.zoo import letterbox, mosaic, photo_files, read_photo, read_photos, varied


def picture(path: Path, height: int = 6, width: int = 9) -> NDArray[np.uint8]:
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    Image.fromarray(pixels).save(path)
    return pixels


def test_a_photograph_is_red_first_from_nil_to_one(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.shape == (3, 6, 9)
    assert np.allclose(photo.permute(1, 2, 0).numpy() * 255, pixels)


def test_files_come_by_name_and_other_files_do_not(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.jpeg"):
        picture(tmp_path / name) if name.endswith("png") else Image.new("RGB", (4, 4)).save(
            tmp_path / name, "JPEG"
        )
    (tmp_path / "LICENSES.csv").write_text("x")
    assert [p.name for p in photo_files(tmp_path)] == ["a.png", "b.JPG", "c.jpeg"]


def test_photographs_are_letterboxed_and_keep_their_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", 8, 4)
    photos = read_photos(photo_files(tmp_path), (16, 16))
    assert photos.names == ("a.png", "b.png")
    assert photos.sizes == ((6, 9), (8, 4))
    expected = letterbox(read_photo(tmp_path / "a.png"), (16, 16))
    assert torch.allclose(photos.images[0] / 255, expected, atol=0.5 / 255)


def test_what_is_no_photograph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png is no photograph"):
        read_photo(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole.replace(b"IDAT", b"\x00DAT"))
    with pytest.raises(DataError, match=r"b\.png is no photograph"):
        read_photo(tmp_path / "b.png")
    Image.fromarray(np.full((4, 4), 30000, dtype=np.uint16)).save(tmp_path / "c.png")
    with pytest.raises(DataError, match="8 bits a channel"):
        read_photo(tmp_path / "c.png")
    with pytest.raises(DataError, match="no photographs"):
        photo_files(tmp_path / "nowhere")
    with pytest.raises(DataError, match="at least one"):
        read_photos([], (8, 8))


@pytest.mark.parametrize("shape", [(3, 40, 60), (3, 7, 300), (3, 1, 1)])
def test_variations_depend_on_the_generator_alone(shape: tuple[int, int, int]) -> None:
    photo = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    first, second = (varied(photo, (320, 320), torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.shape == (3, 320, 320)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    if min(shape[1:]) > 1:
        assert not torch.equal(first, varied(photo, (320, 320), torch.Generator().manual_seed(5)))


def test_a_mosaic_holds_four() -> None:
    photos = [torch.full((3, 5, 7), level) for level in (0.0, 0.2, 0.6, 1.0)]
    whole = mosaic(photos, (8, 12), torch.Generator().manual_seed(0))
    assert whole.shape == (3, 8, 12)
    corners = [whole[0, y, x].item() for y in (0, -1) for x in (0, -1)]
    assert corners == [0, 51, 153, 255]
    photos = [torch.linspace(0, 1, 6).expand(3, 4, 6)] * 4
    seen = {mosaic(photos, (8, 12), torch.Generator().manual_seed(n)).numpy().tobytes() for n in range(6)}
    assert len(seen) > 1
    with pytest.raises(ArgumentError, match="even"):
        mosaic(photos, (7, 12), torch.Generator())
