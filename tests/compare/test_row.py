"""Rows and settings: what they refuse, and that JSON gives them back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from de_plugin.compare import Comparison, Row, Settings
from de_plugin.errors import ArgumentError, FileError
from tests.compare.made import comparison, row, settings

NUMBERS = st.floats(0, 1e9) | st.none()


@given(
    method=st.text(min_size=1),
    numbers=st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    error=st.text(),
    layers=st.lists(st.tuples(st.text(), st.floats(0, 1))),
    curve=st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 1e9))),
)
def test_a_row_comes_back_from_json(
    method: str,
    numbers: tuple[float | None, ...],
    error: str,
    layers: list[tuple[str, float]],
    curve: list[tuple[int, float]],
) -> None:
    density, macs, params, divergence, score = numbers
    measured = Row(
        "weights",
        "host",
        method,
        0.5,
        0,
        density,
        macs,
        params,
        None,
        divergence,
        score,
        1.5,
        7,
        error,
        tuple(layers),
        tuple(curve),
    )
    assert Row.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    assert measured.failed == bool(error)


def test_rows_refuse_what_cannot_be() -> None:
    with pytest.raises(ArgumentError, match="task='width'"):
        Row("width", "host", "method", 0.5, 0)
    with pytest.raises(ArgumentError, match="divergence=inf"):
        Row("weights", "host", "method", 0.5, 0, divergence=float("inf"))
    with pytest.raises(FileError, match="no row of a comparison"):
        Row.from_dict({"task": "weights"})
    with pytest.raises(FileError, match="colour"):
        Row.from_dict({**row("weights", "torch", "x", 0.5, 0).to_dict(), "colour": "red"})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": ("wide",)}, "task='wide'"),
        ({"task": ()}, "task="),
        ({"sparsities": ()}, "sparsities"),
        ({"sparsities": (0.5, 0.5)}, "twice"),
        ({"sparsities": (1.0,)}, "sparsities=1.0"),
        ({"sparsities": (90,)}, "0.9"),
        ({"ratios": (-0.1,)}, "ratios"),
        ({"bits": (0,)}, "bits"),
        ({"seeds": (-1,)}, "seeds"),
        ({"seeds": (True,)}, "seeds"),
    ],
)
def test_settings_refuse_grids_without_cells(changed: dict[str, object], message: str) -> None:
    with pytest.raises((ArgumentError, FileError), match=message):
        settings(**changed)


def test_settings_tell_what_makes_rows_incomparable() -> None:
    known = settings()
    assert known.differences(settings(seeds=(5,), sparsities=(0.1,), hosts=(), task=("weights",))) == []
    [found] = known.differences(settings(evaluations=7))
    assert found == "evaluations was 7, is 100"
    assert "score" in known.differences(settings(score="mine"))[0]
    assert Settings.from_dict(json.loads(json.dumps(known.to_dict()))) == known


def test_a_comparison_comes_back_from_its_file_and_its_text(tmp_path: object) -> None:
    whole = comparison()
    text = json.dumps(whole.to_dict())
    assert Comparison.from_json(text) == whole
    assert Comparison.from_dict(json.loads(text)).to_dict() == whole.to_dict()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "rows": [3]}'])
def test_what_is_no_comparison_is_refused(text: str) -> None:
    with pytest.raises(FileError):
        Comparison.from_json(text)


def test_a_comparison_holds_no_row_twice_and_cannot_be_changed() -> None:
    whole = comparison()
    with pytest.raises(FileError, match="twice"):
        replace(whole, rows=(*whole.rows, whole.rows[0]))
    with pytest.raises(TypeError):
        vars(whole)["versions"]["torch"] = "0"
    assert len(whole.failed) == 1
