"""Search spaces as genes: what is decoded lies in the space, and encoding leads back to it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from de_plugin.adapters.nni.space import Space
from de_plugin.errors import ArgumentError

ENDS = st.tuples(st.floats(0.01, 5), st.floats(0.1, 5)).map(lambda p: [p[0], p[0] + p[1]])
STEPS = st.sampled_from([0.01, 0.25, 0.3, 1.0])


def spec(kind: str, values: list[Any]) -> dict[str, Any]:
    return {"_type": kind, "_value": values}


NUMBERS = st.one_of(
    st.tuples(st.sampled_from(["uniform", "loguniform", "normal", "lognormal"]), ENDS).map(
        lambda p: spec(p[0], p[1])
    ),
    st.tuples(st.sampled_from(["quniform", "qloguniform", "qnormal", "qlognormal"]), ENDS, STEPS).map(
        lambda p: spec(p[0], [*p[1], p[2]])
    ),
    st.tuples(st.integers(-5, 5), st.integers(1, 40)).map(lambda p: spec("randint", [p[0], p[0] + p[1]])),
    st.lists(st.integers(-9, 9), min_size=1, max_size=6, unique=True).map(lambda v: spec("choice", v)),
    st.lists(st.text(max_size=3), min_size=1, max_size=4, unique=True).map(lambda v: spec("choice", v)),
)
NESTED = st.lists(st.dictionaries(st.sampled_from("pq"), NUMBERS, max_size=2), min_size=1, max_size=3).map(
    lambda options: spec("choice", [{"_name": f"option{i}", **o} for i, o in enumerate(options)])
)
SPACES = st.dictionaries(st.sampled_from("abc"), st.one_of(NUMBERS, NESTED), min_size=1)


def inside(entries: dict[str, Any], parameters: dict[str, Any]) -> bool:
    assert {n for n in entries if n != "_name"} == {n for n in parameters if n != "_name"}
    for name, entry in entries.items():
        if name == "_name":
            continue
        kind, values, value = entry["_type"], entry["_value"], parameters[name]
        if kind == "choice" and isinstance(values[0], dict):
            if not inside(next(v for v in values if v["_name"] == value["_name"]), value):
                return False
        elif kind == "choice":
            if value not in values:
                return False
        elif "normal" in kind:
            if not math.isfinite(value) or ("log" in kind and value < 0):
                return False
        elif not values[0] <= value <= values[1] or (kind == "randint" and value == values[1]):
            return False
    return True


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    return bool(np.isclose(a, b, rtol=1e-6, atol=1e-6)) if isinstance(a, float) else bool(a == b)


@settings(deadline=None)
@given(SPACES, st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 30.0]))
def test_every_genome_decodes_to_a_point_of_the_space(entries: Any, seed: int, scale: float) -> None:
    space = Space(entries)
    genome = scale * np.random.default_rng(seed).standard_normal(space.genes)
    if scale < 30 or not any("normal" in e["_type"] for e in entries.values()):
        assert inside(entries, space.decode(genome))


@settings(deadline=None)
@given(SPACES, st.integers(0, 2**31))
def test_encoding_a_decoded_point_leads_back_to_it(entries: Any, seed: int) -> None:
    space = Space(entries)
    point = space.decode(np.random.default_rng(seed).standard_normal(space.genes))
    assert alike(space.decode(space.encode(point)), point)


@settings(deadline=None)
@given(SPACES)
def test_listing_a_space_gives_each_point_once(entries: Any) -> None:
    points = []
    for point in Space(entries).every():
        points.append(point)
        if len(points) == 500:
            break
    assert all(inside(entries, point) for point in points)
    assert all(alike(Space(entries).decode(Space(entries).encode(p)), p) for p in points[:20])


def test_genes_of_zero_are_the_middle() -> None:
    space = Space(
        {"a": spec("uniform", [0, 4]), "b": spec("loguniform", [0.01, 1]), "c": spec("qnormal", [5, 2, 2])}
    )
    assert space.decode(np.zeros(3)) == pytest.approx({"a": 2.0, "b": 0.1, "c": 4.0})


def test_genes_are_distributed_as_the_space_says() -> None:
    space = Space(
        {"a": spec("uniform", [0, 1]), "b": spec("randint", [0, 4]), "c": spec("choice", ["x", "y"])}
    )
    drawn = [space.decode(g) for g in np.random.default_rng(0).standard_normal((4000, space.genes))]
    assert np.mean([p["a"] for p in drawn]) == pytest.approx(0.5, abs=0.03)
    assert np.bincount([p["b"] for p in drawn]) / 4000 == pytest.approx([0.25] * 4, abs=0.03)
    assert np.mean([p["c"] == "x" for p in drawn]) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "non-empty"),
        ({"a": 3}, "'a': 3, expected"),
        ({"a": spec("unifrom", [0, 1])}, "'a': type 'unifrom', expected choice or one of randint"),
        ({"a": spec("uniform", [1, 0])}, "'a': 1 to 0, expected low < high"),
        ({"a": spec("uniform", [0])}, "expected 2 finite numbers"),
        ({"a": spec("uniform", [0, math.nan])}, "expected 2 finite numbers"),
        ({"a": spec("quniform", [0, 1])}, "expected 3 finite numbers"),
        ({"a": spec("quniform", [0, 1, 0])}, "step 0, expected > 0"),
        ({"a": spec("loguniform", [0, 1])}, "low end 0, expected > 0"),
        ({"a": spec("normal", [0, -1])}, "deviation -1, expected > 0"),
        ({"a": spec("randint", [3, 3])}, "holds no integer"),
        ({"a": spec("choice", [])}, "choice among nothing"),
        ({"a": spec("choice", [{"_name": "x"}, 3])}, "nested option 3, expected"),
        ({"a": spec("choice", [{"_name": "x", "b": spec("uniform", [2, 1])}])}, "'a/b': 2 to 1"),
    ],
)
def test_what_is_wrong_is_named(entries: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Space(entries)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "'a' is missing"),
        ({"a": 2, "b": "x", "c": 0.5}, "a=2: expected an integer in .0, 2."),
        ({"a": True, "b": "x", "c": 0.5}, "a=True: expected a number"),
        ({"a": 1, "b": "z", "c": 0.5}, "b='z': expected one of"),
        ({"a": 1, "b": "x", "c": 1.5}, "c=1.5: expected a number in"),
    ],
)
def test_points_outside_are_refused(parameters: Any, message: str) -> None:
    space = Space(
        {"a": spec("randint", [0, 2]), "b": spec("choice", ["x", "y"]), "c": spec("uniform", [0, 1])}
    )
    with pytest.raises(ArgumentError, match=message):
        space.encode(parameters)
