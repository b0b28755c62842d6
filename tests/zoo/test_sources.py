"""Where an image set is looked for: in which order, what is cached, and what the error says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from de_plugin.errors import DataError, DEWarning
from de_plugin.zoo.images import IDX_FILES, RawImages
from de_plugin.zoo.sources import find

if TYPE_CHECKING:
    from .conftest import Places

Write = Callable[..., Path]


def assert_same(read: RawImages, expected: RawImages) -> None:
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(read.arrays()[name], array)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("subfolder", ["", "made-up", "MadeUp/raw"])
def test_path_to_idx_files(
    tmp_path: Path, places: Places, write_idx: Write, compressed: bool, subfolder: str
) -> None:
    write_idx(tmp_path / "given" / subfolder, places.raw, compressed)
    assert_same(find(places.image_set(), tmp_path / "given", True), places.raw)
    assert places.calls == []


@pytest.mark.parametrize("given", ["folder", "folder/mnist.pkl.gz"])
def test_path_to_a_pickle(tmp_path: Path, places: Places, write_pickle: Write, given: str) -> None:
    write_pickle(tmp_path / "folder/mnist.pkl.gz", places.raw)
    assert_same(find(places.image_set(), str(tmp_path / given), True), places.raw)


def test_the_users_own_files_may_differ_from_the_official_ones(
    tmp_path: Path, places: Places, other_raw: RawImages, write_idx: Write
) -> None:
    given = write_idx(tmp_path / "given", other_raw)
    assert_same(find(places.image_set(), given, True), other_raw)


def test_a_path_that_does_not_work_is_an_error(tmp_path: Path, places: Places, write_idx: Write) -> None:
    places.have = {"installed", "fetched", "remote"}
    (tmp_path / "empty").mkdir()
    part = write_idx(tmp_path / "part", places.raw)
    (part / f"{IDX_FILES['test_labels']}.gz").unlink()
    for given, message in [
        (tmp_path / "none", "none does not exist, expected mnist.pkl.gz or the four files"),
        (tmp_path / "empty", "holds no image set, nor does .*made-up"),
        (part, "lacks t10k-labels-idx1-ubyte"),
        (part / f"{IDX_FILES['test_images']}.gz", "give their folder instead"),
    ]:
        with pytest.raises(DataError, match=message):
            find(places.image_set(), given, True)
    assert places.calls == []


def test_environment_names_a_folder_of_sets(
    tmp_path: Path, places: Places, write_idx: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DE_PLUGIN_DATA", str(tmp_path / "sets"))
    write_idx(tmp_path / "sets/made-up", places.raw)
    assert_same(find(places.image_set(), None, True), places.raw)
    assert places.calls == []


def test_environment_folder_is_told_apart_by_checksum(
    tmp_path: Path,
    places: Places,
    other_raw: RawImages,
    write_idx: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DE_PLUGIN_DATA", str(tmp_path / "flat"))
    write_idx(tmp_path / "flat", other_raw)
    with pytest.raises(DataError, match="DE_PLUGIN_DATA: train_images .* is another set"):
        find(places.image_set(), None, False)
    write_idx(tmp_path / "flat", places.raw)
    assert_same(find(places.image_set(), None, False), places.raw)


def test_the_set_passed_by_path_wins_over_the_environment(
    tmp_path: Path,
    places: Places,
    other_raw: RawImages,
    write_idx: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DE_PLUGIN_DATA", str(tmp_path / "sets"))
    write_idx(tmp_path / "sets/made-up", places.raw)
    given = write_idx(tmp_path / "given", other_raw)
    assert_same(find(places.image_set(), given, True), other_raw)


@pytest.mark.parametrize(
    ("have", "calls"),
    [
        ({"installed", "fetched", "remote"}, ["installed"]),
        ({"fetched", "remote"}, ["installed", "fetched"]),
        ({"remote"}, ["installed", "fetched", "remote"]),
    ],
)
def test_order_of_the_packages_and_servers(places: Places, have: set[str], calls: list[str]) -> None:
    places.have = have
    assert_same(find(places.image_set(), None, True), places.raw)
    assert places.calls == calls


@pytest.mark.parametrize("place", ["fetched", "remote"])
def test_what_was_fetched_is_cached(places: Places, place: str) -> None:
    places.have = {place}
    find(places.image_set(), None, True)
    assert places.image_set().cached.is_file()
    places.calls.clear()
    assert_same(find(places.image_set(), None, False), places.raw)
    assert places.calls == []


def test_without_download_nothing_is_fetched(places: Places) -> None:
    places.have = {"fetched", "remote"}
    with pytest.raises(DataError, match="download=False"):
        find(places.image_set(), None, False)
    assert places.calls == ["installed"]


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "other"])
def test_a_damaged_cache_is_fetched_again(places: Places, damage: str) -> None:
    places.have = {"fetched"}
    images = places.image_set()
    find(images, None, True)
    content = images.cached.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    images.cached.write_bytes(
        {"truncated": content[:-9], "changed": changed, "empty": b"", "other": b"x" * 99}[damage]
    )
    with pytest.warns(DEWarning, match="is damaged and is looked for elsewhere"):
        assert_same(find(images, None, True), places.raw)
    assert images.cached.read_bytes() == content


def test_a_fetched_copy_that_is_not_the_official_one_is_refused(places: Places, other_raw: RawImages) -> None:
    images = places.image_set()
    places.have, places.raw = {"installed", "fetched", "remote"}, other_raw
    with pytest.raises(DataError, match="official server: train_images .* SHA-256"):
        find(images, None, True)
    assert places.calls == ["installed", "fetched", "remote"]
    assert not images.cached.exists()


def test_the_last_error_lists_every_place_and_the_remedy(places: Places) -> None:
    with pytest.raises(DataError) as caught:
        find(places.image_set(), None, True)
    message = str(caught.value)
    assert "Give path= a folder with train-images-idx3-ubyte" in message
    assert "made-up or MadeUp/raw in the environment variable DE_PLUGIN_DATA" in message
    for line in (
        "- DE_PLUGIN_DATA: the environment variable is not set",
        f"- cache: there is no file {places.image_set().cached}",
        "- installed package: no luck with installed",
        "- fetched package: no luck with fetched",
        "- official server: no luck with remote",
    ):
        assert line in message


def test_a_cache_that_cannot_be_written_is_only_warned_about(
    tmp_path: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.have = {"fetched"}
    (tmp_path / "file").touch()
    monkeypatch.setenv("DE_PLUGIN_CACHE", str(tmp_path / "file"))
    with pytest.warns(DEWarning, match="cannot write .* set DE_PLUGIN_CACHE"):
        assert_same(find(places.image_set(), None, True), places.raw)
