"""What hosts offer: found by entry point, asked by name, and each of their methods leaves equal sizes."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from de_plugin import compare
from de_plugin.compare import Host, hosts
from de_plugin.compare.hosts import GROUP, found
from de_plugin.errors import ArgumentError, MissingDependencyError
from de_plugin.quantize import RateSearch, quantize
from tests.compare.small import BROKEN, ZEROING, data, network

ROOT = Path(__file__).parents[2]
VALUES = {
    "neural-compressor": "de_plugin.adapters.neural_compressor.comparing:host",
    "nni": "de_plugin.adapters.nni.comparing:host",
    "torch-pruning": "de_plugin.adapters.torch_pruning.comparing:host",
}


def mine() -> Host:
    return Host("mine", {"mine": "1.0"}, (ZEROING, BROKEN), ("mine: is made for tests",))


def no_host() -> str:
    return "mine"


def offered(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    entries = [EntryPoint(name.replace("_", "-"), value, GROUP) for name, value in values.items()]
    monkeypatch.setattr(hosts, "entry_points", lambda group: entries if group == GROUP else [])


def test_entry_points_are_those_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split(f'[project.entry-points."{GROUP}"]')[1].split("\n[")[0]
    assert all(f'{name} = "{value}"' in section for name, value in VALUES.items())


def test_a_host_of_ones_own_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    offered(monkeypatch, mine=f"{__name__}:mine")
    result = compare(network(), data(), methods=["mine:*", "magnitude"], sparsities=(0.5,))
    assert [(r.host, r.method, r.failed) for r in result.rows] == [
        ("de_plugin", "magnitude", False),
        ("mine", "zeroing", False),
        ("mine", "broken", True),
    ]
    assert result.versions["mine"] == "1.0"
    assert "mine: is made for tests" in result.notes
    assert result.settings.hosts == ("de_plugin", "torch", "mine")


def test_a_host_that_is_not_installed_is_told_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offered(monkeypatch, no_such="no_such_module_anywhere:host", odd=f"{__name__}:no_host")
    known, missing = found(None)
    assert [h.name for h in known] == ["de_plugin", "torch"]
    assert missing[0].startswith("no-such: left out, MissingDependencyError: hosts: no-such needs")
    assert "pip install 'de_plugin[no-such]'" in missing[0]
    with pytest.raises(MissingDependencyError, match="no-such needs no_such_module_anywhere"):
        found(["no-such"])
    with pytest.raises(ArgumentError, match="expected a Host"):
        found(["odd"])
    with pytest.raises(ArgumentError, match="'nny' is none; there are no-such, odd"):
        found(["nny"])
    with pytest.raises(ArgumentError, match="is named twice"):
        found(["odd", "odd"])


@pytest.mark.parametrize(
    ("name", "module", "failing"), [("torch-pruning", "torch_pruning", {"obdc"}), ("nni", "nni", set())]
)
def test_every_method_of_a_host_leaves_what_was_asked_for(
    name: str, module: str, failing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(module)
        offered(monkeypatch, **{name.replace("-", "_"): VALUES[name]})
        result: Any = compare(
            network(),
            data(),
            task=("weights", "channels"),
            hosts=[name],
            methods=[f"{name}:*"],
            sparsities=(0.5,),
            ratios=(0.5,),
            budget=20,
            test=data(40, 1),
        )
    assert {r.method for r in result.rows if r.failed} <= failing, [r.error for r in result.failed]
    assert result.versions[name]
    sized = [r for r in result.rows if r.method not in ("bn scale", "activation", *failing)]
    assert {r.macs for r in sized if r.task == "channels"} == {16 * 2 * 9 + 32 * 5 + 5 * 3}
    assert all(r.density == pytest.approx(0.5, abs=0.01) for r in sized)
    assert all(r.score is not None and r.divergence >= 0 for r in sized)
    searched = [r for r in result.rows if r.method == "de"]
    assert searched
    assert all(r.evaluations >= 20 for r in searched)


def test_the_engine_offers_levels_for_so_many_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    offered(monkeypatch)
    result: Any = compare(network(), data(), task="bits", bits=(5, 3), budget=20, test=data(40, 1))
    assert [r.error for r in result.failed] == []
    assert [r.host for r in result.rows] == ["de_plugin"] * 6
    rows = {(r.method, r.sparsity): r for r in result.rows}
    for method in ("uniform", "kmeans"):
        fine, coarse = rows[method, 5.0], rows[method, 3.0]
        assert fine.divergence < coarse.divergence
        assert 2.5 < coarse.bits < 4  # three layers' tables, of two bytes a level, are much of so few weights
        assert coarse.bits < fine.bits
        assert coarse.evaluations == 0
        assert coarse.density == 1.0
    assert rows["de", 3.0].bits < rows["de", 5.0].bits < 6
    assert rows["de", 3.0].evaluations >= 20


@pytest.mark.parametrize(
    ("budget", "generations", "refined"), [(20, 1, False), (300, 3, False), (2500, 10, True)]
)
def test_a_short_budget_makes_the_search_for_levels_short(
    budget: int, generations: int, refined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered(monkeypatch)
    asked: list[dict[str, Any]] = []

    def noted(*given: Any, **options: Any) -> Any:
        asked.append(options)
        return quantize(*given, **{**options, "search": RateSearch(generations=0), "levels": None})

    monkeypatch.setattr(sys.modules["de_plugin.compare.own"], "quantize", noted)
    compare(network(), data(), task="bits", bits=(3,), methods=["de"], budget=budget, test=data(40, 1))
    [options] = asked
    assert options["search"].generations == generations
    assert (options["levels"] is not None) == refined


def test_levels_leave_zeros_and_what_is_excluded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    offered(monkeypatch)
    model = network()
    model.get_parameter("3.weight").data[:, ::2] = 0
    result: Any = compare(
        model, data(), task="bits", bits=(2,), methods=["uniform", "kmeans"], exclude=["0"], test=data(40, 1)
    )
    assert [r.error for r in result.failed] == []
    assert {r.density for r in result.rows} == {1 - 320 / (640 + 30)}
    assert {tuple(name for name, _ in r.layers) for r in result.rows} == {("3.weight", "5.weight")}


@pytest.mark.parametrize("bits", [2.5, 1, 9])
def test_bits_that_no_levels_have_are_rows_that_say_so(bits: float, monkeypatch: pytest.MonkeyPatch) -> None:
    offered(monkeypatch)
    result: Any = compare(network(), data(), task="bits", bits=(bits,), budget=20)
    assert len(result.rows) == 3
    assert all(f"ArgumentError: bits={bits:g}: " in r.error and "2 to 8" in r.error for r in result.rows)
