"""The tuner evolves: it finds better recipes than chance, never tries one twice, and is deterministic."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni import NoMoreTrialError

    from de_plugin.adapters.nni.tuner import DETuner

from de_plugin.errors import ArgumentError

SPACE: dict[str, Any] = {
    "ratio": {"_type": "uniform", "_value": [0.0, 1.0]},
    "rate": {"_type": "loguniform", "_value": [1e-4, 1.0]},
    "steps": {"_type": "randint", "_value": [1, 9]},
    "criterion": {"_type": "choice", "_value": ["magnitude", "fisher", "activation"]},
}


def quality(p: dict[str, Any]) -> float:
    far = (np.log10(p["rate"]) + 2) ** 2 / 4
    bonus = {"magnitude": 0.0, "fisher": 1.0, "activation": 0.5}[p["criterion"]]
    value: float = bonus - (p["ratio"] - 0.7) ** 2 - far - abs(p["steps"] - 4) / 10
    return value


def play(tuner: DETuner, trials: int) -> list[tuple[dict[str, Any], float]]:
    tuner.update_search_space(SPACE)
    result = []
    for number in range(trials):
        parameters = tuner.generate_parameters(number)
        value = quality(parameters)
        tuner.receive_trial_result(number, parameters, value)
        result.append((parameters, value))
    return result


def test_it_finds_better_recipes_than_it_begins_with() -> None:
    found = [value for _, value in play(DETuner(seed=1), 80)]
    assert max(found) > 0.9
    assert np.mean(found[-20:]) > np.mean(found[:20]) + 0.2


def test_the_same_seed_gives_the_same_trials_and_none_twice() -> None:
    first, second, other = (play(DETuner(seed=s), 30) for s in (3, 3, 4))
    assert first == second
    assert first != other
    assert len({str(p) for p, _ in first}) == 30


def test_minimizing_mirrors_maximizing() -> None:
    down, up = DETuner("minimize", seed=0), DETuner("maximize", seed=0)
    for tuner in (down, up):
        tuner.update_search_space(SPACE)
    for number in range(20):
        a, b = down.generate_parameters(number), up.generate_parameters(number)
        assert a == b
        down.receive_trial_result(number, a, {"default": -quality(a)})
        up.receive_trial_result(number, b, quality(b))


def test_failed_trials_and_small_spaces() -> None:
    tuner = DETuner()
    tuner.update_search_space({"bits": {"_type": "choice", "_value": [2, 4, 8]}})
    seen = []
    for number in range(3):
        seen.append(tuner.generate_parameters(number)["bits"])
        tuner.trial_end(number, success=False)
    assert sorted(seen) == [2, 4, 8]
    with pytest.raises(NoMoreTrialError):
        tuner.generate_parameters(3)


@pytest.mark.parametrize(
    "space",
    [
        {"a": {"_type": "uniform", "_value": [1.0]}},
        {"a": {"_type": "unheard", "_value": [1, 2]}},
        {"a": {"_type": "loguniform", "_value": [0, 1]}},
        {"a": {"_type": "choice", "_value": []}},
    ],
)
def test_spaces_that_cannot_be_searched_are_refused(space: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="a"):
        DETuner().update_search_space(space)
    with pytest.raises(ArgumentError, match="optimize_mode"):
        DETuner("best")
