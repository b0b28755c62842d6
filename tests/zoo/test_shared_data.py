"""What real data are missed for: absence is a reason to skip, damage is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from de_plugin.errors import DataError
from tests.zoo import shared_data


def refusing(message: str) -> dict[str, object]:
    def read() -> None:
        raise DataError(message)

    return {"digits": read}


@pytest.mark.parametrize("fault", ["the copy is damaged", "have the SHA-256 12ab", "x holds 3 bytes"])
def test_a_wrong_copy_is_an_error(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_data, "DATA", refusing(f"found nowhere: cache: {fault}"))
    with pytest.raises(DataError, match="found nowhere"):
        shared_data.published("digits")


def test_what_nobody_has_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_data, "DATA", refusing("found nowhere: official server: unreachable"))
    with pytest.raises(pytest.skip.Exception, match="digits is not handed on.*unreachable"):
        shared_data.published("digits")


def test_shared_files_are_found_or_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DE_PLUGIN_TEST_DATA", str(tmp_path))
    (tmp_path / "here").write_text("")
    assert shared_data.shared("here") == tmp_path / "here"
    with pytest.raises(pytest.skip.Exception, match="belong to others"):
        shared_data.shared("gone")
