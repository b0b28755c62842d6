"""What NNI asks of a tuner: trials at once, failures, imports, changed spaces, and clear refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from de_plugin.adapters.nni.tuner import DETuner
from de_plugin.errors import ArgumentError, DEError

SPACE: dict[str, Any] = {
    "ratio": {"_type": "uniform", "_value": [0.0, 1.0]},
    "recovery": {
        "_type": "choice",
        "_value": [
            {"_name": "none"},
            {"_name": "obs", "damp": {"_type": "loguniform", "_value": [1e-4, 1.0]}},
        ],
    },
    "cycles": {"_type": "randint", "_value": [1, 4]},
}


def ready(**options: Any) -> DETuner:
    tuner = DETuner(**options)
    tuner.update_search_space(SPACE)
    return tuner


def value_of(parameters: dict[str, Any]) -> float:
    return float(parameters["ratio"] - parameters["cycles"])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.lists(st.sampled_from(["ask", "result", "failure", "nan"]), max_size=60))
def test_any_order_of_requests_and_ends_gives_distinct_trials(seed: int, events: list[str]) -> None:
    runs = []
    for _ in range(2):
        tuner = ready(seed=seed)
        open_: list[int] = []
        given_: list[dict[str, Any]] = []
        for event in events:
            if event == "ask" or not open_:
                number = len(given_)
                given_.append(tuner.generate_parameters(number))
                open_.append(number)
                continue
            number = open_.pop(0)
            if event != "failure":
                value = math.nan if event == "nan" else value_of(given_[number])
                tuner.receive_trial_result(number, given_[number], value)
            tuner.trial_end(number, event != "failure")
        runs.append(given_)
        assert len({json.dumps(p, sort_keys=True) for p in given_}) == len(given_)
    assert runs[0] == runs[1]


def test_many_at_once_need_not_wait_for_results() -> None:
    tuner = ready()
    given_ = tuner.generate_multiple_parameters(list(range(50)))
    assert len(given_) == 50
    for number in reversed(range(50)):
        tuner.receive_trial_result(number, given_[number], {"default": value_of(given_[number])})
    assert tuner.generate_parameters(50) not in given_


def test_failures_lead_away() -> None:
    tuner = ready(seed=2)
    ratios = []
    for number in range(120):
        parameters = tuner.generate_parameters(number)
        ratios.append(parameters["ratio"])
        if parameters["ratio"] > 0.3:
            tuner.trial_end(number, False)
        else:
            tuner.receive_trial_result(number, parameters, value_of(parameters))
    assert sum(r > 0.3 for r in ratios[-40:]) < sum(r > 0.3 for r in ratios[:40])


@pytest.mark.parametrize("wrap", [lambda records: records, json.dumps, lambda r: [json.dumps(x) for x in r]])
def test_imported_trials_are_learnt_and_not_tried_again(wrap: Any) -> None:
    small = {"bits": {"_type": "choice", "_value": [2, 4, 8]}}
    tuner = DETuner()
    tuner.update_search_space(small)
    tuner.import_data(
        wrap(
            [
                {"parameter": {"bits": 4}, "value": 0.5},
                {"parameter": {"bits": 8}, "value": {"default": 0.25}},
                {"parameter": {"bits": 3}, "value": 0.5},
                {"parameter": {"bits": 2}, "value": None},
                {"value": 0.5},
            ]
        )
    )
    assert tuner.generate_parameters(0) == {"bits": 2}


def test_what_is_imported_steers() -> None:
    def mean(records: list[Any]) -> float:
        tuner = ready(seed=5)
        tuner.import_data(records)
        return float(sum(p["ratio"] for p in tuner.generate_multiple_parameters(list(range(40))))) / 40

    records = []
    for i in range(60):
        parameters = {"ratio": i / 60, "recovery": {"_name": "none"}, "cycles": 1 + i % 3}
        records.append({"parameter": parameters, "value": i / 60})
    assert mean(records) > mean([]) + 0.1


def test_a_changed_space_is_followed_and_keeps_what_fits() -> None:
    tuner = ready()
    first = tuner.generate_parameters(0)
    wider = {**SPACE, "cycles": {"_type": "randint", "_value": [7, 9]}}
    tuner.update_search_space(wider)
    tuner.receive_trial_result(0, first, 1.0)
    assert all(p["cycles"] >= 7 for p in tuner.generate_multiple_parameters([1, 2, 3]))
    with pytest.raises(ArgumentError, match="'cycles'"):
        tuner.update_search_space({"cycles": {"_type": "randint", "_value": [1]}})
    assert tuner.generate_parameters(4)["cycles"] >= 7


def test_trials_of_the_users_own_are_learnt() -> None:
    tuner = ready()
    own = {"ratio": 0.25, "recovery": {"_name": "obs", "damp": 0.5}, "cycles": 2}
    tuner.receive_trial_result(999, own, 1.0, customized=True)
    tuner.receive_trial_result(998, {"ratio": 7.0}, 1.0, customized=True)
    assert tuner.generate_parameters(0) != own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimize_mode": "max"}, "optimize_mode='max'"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"population_size": 3}, "population_size=3"),
    ],
)
def test_options_out_of_range_are_named(options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        DETuner(**options)


@pytest.mark.parametrize("value", ["0.5", None, {"accuracy": 1.0}, True, [1.0]])
def test_a_result_that_is_no_number_is_refused(value: Any) -> None:
    tuner = ready()
    parameters = tuner.generate_parameters(0)
    with pytest.raises(DEError, match="final result"):
        tuner.receive_trial_result(0, parameters, value)


def test_without_a_search_space_there_are_no_parameters() -> None:
    with pytest.raises(ArgumentError, match="update_search_space"):
        DETuner().generate_parameters(0)
