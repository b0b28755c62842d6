"""Sentences of the language reference: running text, in two sets that never change places."""

from __future__ import annotations

import builtins
import hashlib
from typing import Any

import pytest

from de_plugin.errors import ArgumentError, DataError
from de_plugin.zoo import sentences
from de_plugin.zoo.sentences import split

PROSE = """* The "while" statement repeats a block as long as an expression
  is true. It tests the expression first!  See [1] for more.

"""


def test_two_sets_without_a_sentence_in_common() -> None:
    found = sentences()
    assert len(found.calibration) > 1000
    assert len(found.evaluation) > 300
    every = (*found.calibration, *found.evaluation)
    assert len({"".join(filter(str.isalnum, sentence.lower())) for sentence in every}) == len(every)
    assert all("\n" not in s and 6 <= len(s.split()) <= 40 and s[-1] in ".!?" for s in every)
    assert sentences() == found


def test_a_sentence_stays_in_its_set_and_place_whatever_else_there_is() -> None:
    found = sentences()
    for part, evaluation in ((found.calibration, False), (found.evaluation, True)):
        digests = [hashlib.sha256(sentence.encode()).digest() for sentence in part]
        assert digests == sorted(digests)
        assert all((digest[-1] < 64) == evaluation for digest in digests)


def test_prose_is_cut_at_full_stops_and_the_rest_left_out() -> None:
    assert split(PROSE) == [
        'The "while" statement repeats a block as long as an expression is true.',
    ]
    assert split("   while_stmt ::= \"while\" assignment_expression ':' suite ['else' ':' suite]") == []
    assert split('The "while" statement\n*********************') == []


def test_as_many_as_asked_for_and_no_more_than_there_are() -> None:
    few = sentences().first(3, 2)
    assert (len(few.calibration), len(few.evaluation)) == (3, 2)
    assert few.calibration == sentences().calibration[:3]
    with pytest.raises(ArgumentError, match=r"evaluation=0: expected 1 to \d+"):
        sentences().first(1, 0)
    with pytest.raises(ArgumentError, match="calibration=1000000"):
        sentences().first(1_000_000, 1)


def test_a_python_without_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pydoc_data.topics":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    sentences.cache_clear()
    with pytest.raises(DataError, match="no module pydoc_data.topics: install"):
        sentences()
