"""The file of a comparison: whole after each row, gone on with, and refused where it is another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from de_plugin import Comparison, compare
from de_plugin.compare import Case, Method, Pruned, Step
from de_plugin.errors import FileError
from tests.compare.small import BROKEN, ZEROING, data, network, zeroing


def compared(path: Path, **options: Any) -> Comparison:
    given = {"hosts": (), "methods": [ZEROING], "sparsities": (0.5, 0.7), "budget": 20, **options}
    return compare(network(), data(), path=path, **given)


def counting(calls: list[float], fail_at: float = -1) -> Method:
    def run(case: Case) -> Pruned:
        calls.append(case.sparsity)
        if case.sparsity == fail_at:
            raise KeyboardInterrupt
        return zeroing(case)

    return Method("weights", "mine", "counting", run)


def test_rows_that_are_there_are_not_measured_again(tmp_path: Path) -> None:
    path, calls = tmp_path / "rows.json", list[float]()
    first = compared(path, methods=[counting(calls)])
    assert Comparison.from_json(path) == first
    again = compared(path, methods=[counting(calls)], sparsities=(0.5, 0.6, 0.7), seeds=(0, 1))
    assert calls == [0.5, 0.7, 0.5, 0.6, 0.6, 0.7]
    assert {r.key: r for r in first.rows}.items() <= {r.key: r for r in again.rows}.items()
    assert [r.sparsity for r in again.rows] == [0.5, 0.5, 0.6, 0.6, 0.7, 0.7]
    assert Comparison.from_json(path) == again


def test_rows_of_other_methods_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    compared(path, methods=[ZEROING, BROKEN])
    found = compared(path, methods=["magnitude"], sparsities=(0.5,))
    assert [r.method for r in found.rows] == ["magnitude", "broken", "broken", "zeroing", "zeroing"]


def test_an_interruption_leaves_the_file_whole(tmp_path: Path) -> None:
    path, calls = tmp_path / "rows.json", list[float]()
    with pytest.raises(KeyboardInterrupt):
        compared(path, methods=[counting(calls, fail_at=0.7)], sparsities=(0.5, 0.6, 0.7))
    assert [r.sparsity for r in Comparison.from_json(path).rows] == [0.5, 0.6]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]
    found = compared(path, methods=[counting(calls)], sparsities=(0.5, 0.6, 0.7))
    assert calls == [0.5, 0.6, 0.7, 0.7]
    assert len(found.rows) == 3


def test_the_file_is_there_before_the_first_row_and_after_each(tmp_path: Path) -> None:
    path, seen = tmp_path / "rows.json", list[int]()

    def tell(step: Step) -> None:
        if step.row is None:
            seen.append(len(Comparison.from_json(path).rows))

    compared(path, progress=tell)
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": 21}, "evaluations was 20, is 21"),
        ({"divergence": "mse"}, "divergence was"),
        ({"samples": 60}, "samples was 80, is 60"),
        ({"keep": ["0"]}, "keep was"),
        ({"test": data(30)}, "measured_on was 'calibration data', is 'test data'"),
    ],
)
def test_rows_of_another_comparison_are_refused(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    compared(path)
    before = path.read_bytes()
    with pytest.raises(FileError, match=message):
        compared(path, **changed)
    assert path.read_bytes() == before


def test_another_model_and_other_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    compared(path)
    other: Any = network()
    other[0].weight.data.view(-1)[0] += 1
    with pytest.raises(FileError, match=r"rows.json: its rows cannot stand beside these: model was"):
        compare(other, data(), hosts=(), methods=[ZEROING], budget=20, path=path)
    plain = json.loads(path.read_text())
    plain["versions"]["torch"] = "0.4"
    path.write_text(json.dumps(plain))
    with pytest.raises(FileError, match=r"torch was 0\.4, is"):
        compared(path)


@pytest.mark.parametrize("text", ["", "{", '{"format": 1, "rows": []}', "[]"])
def test_what_is_no_comparison_is_refused_and_kept(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(FileError):
        compared(path)
    assert path.read_text() == text


def test_a_place_that_cannot_be_written_is_refused_before_the_first_row(tmp_path: Path) -> None:
    calls = list[float]()
    for path in (tmp_path / "missing" / "rows.json", tmp_path):
        with pytest.raises(FileError):
            compared(path, methods=[counting(calls)])
    assert calls == []
