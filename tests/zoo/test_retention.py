"""Retention: one to one, same class, and laws that hold for all detections."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from de_plugin.errors import ArgumentError, DataError
from de_plugin.zoo import Detection, Missed, Retention, missed, retention

SCORES = st.sampled_from([0.5, 0.6, 0.79, 0.81, 0.95])
CORNERS = st.integers(0, 6).map(float)
BOXES = st.tuples(CORNERS, CORNERS).map(lambda p: (p[0], p[1], p[0] + 3, p[1] + 4))
DETECTIONS = st.builds(Detection, st.integers(0, 1), SCORES, BOXES)
IMAGES = st.lists(st.lists(DETECTIONS, max_size=5), min_size=1, max_size=3)


def at(x: float, score: float = 0.9, label: int = 0) -> Detection:
    return Detection(label, score, (x, 0.0, x + 10, 10.0))


@given(IMAGES)
def test_a_network_keeps_all_of_its_own_objects(images: list[list[Detection]]) -> None:
    kept = retention(images, images)
    assert kept.found == kept.objects == sum(x.score > 0.8 for image in images for x in image)
    assert kept.share == 1
    assert kept.extra == 0


@given(IMAGES, st.data())
def test_counts_stay_within_what_there_is(images: list[list[Detection]], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.lists(DETECTIONS, max_size=5), min_size=len(images), max_size=len(images)))
    kept = retention(images, others)
    assert 0 <= kept.found <= kept.objects <= kept.detections == sum(map(len, images))
    assert 0 <= kept.extra <= sum(map(len, others))
    assert kept.extra >= sum(map(len, others)) - kept.detections


def test_one_finding_counts_for_one_object() -> None:
    assert retention([[at(0), at(1)]], [[at(0)]]) == Retention(1, 2, 0, 2)


def test_the_surest_object_chooses_first() -> None:
    assert retention([[at(3, 0.81), at(0, 0.99)]], [[at(1), at(5)]]).found == 2


@given(IMAGES, st.data())
def test_every_object_is_found_again_or_missed(images: list[list[Detection]], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.lists(DETECTIONS, max_size=5), min_size=len(images), max_size=len(images)))
    kept, lost = retention(images, others), missed(images, others)
    assert len(lost) == kept.objects - kept.found
    assert [x.image for x in lost] == sorted(x.image for x in lost)
    assert all(x.wanted in images[x.image] and x.wanted.score > 0.8 for x in lost)
    for x in lost:  # a score that would do belongs to another object's finding
        near = [y for y in images[x.image] if y.label == x.wanted.label and y.score > 0.8]
        assert x.score < 0.5 or len(near) > 1
    assert missed(images, images) == []


@given(IMAGES, st.data())
def test_what_is_below_the_threshold_changes_no_more_than_the_scores(
    images: list[list[Detection]], data: st.DataObject
) -> None:
    others = data.draw(st.lists(st.lists(DETECTIONS, max_size=5), min_size=len(images), max_size=len(images)))
    faint = [
        [*found, *(Detection(x.label, 0.3, x.box) for x in image)]
        for found, image in zip(others, images, strict=True)
    ]
    before, after = missed(images, others), missed(images, faint)
    assert [(x.image, x.wanted) for x in before] == [(x.image, x.wanted) for x in after]
    assert [max(x.score, 0.3) for x in before] == [x.score for x in after]
    assert retention(images, others) == retention(images, faint)


def test_what_is_missed_is_told_with_what_the_network_still_gives_it() -> None:
    original = [[at(0), at(50, 0.7)], [at(0, 0.95), at(20, 0.85)]]
    compressed = [[at(1, 0.3), at(0, 0.9, label=1)], [at(0, 0.6), at(1, 0.2), at(60, 0.9)]]
    assert missed(original, compressed) == [Missed(0, at(0), 0.3), Missed(1, at(20, 0.85), 0.0)]
    # One detection for two objects: the second still has its score.
    assert missed([[at(0, 0.9), at(1, 0.85)]], [[at(0, 0.7)]]) == [Missed(0, at(1, 0.85), 0.7)]


@pytest.mark.parametrize("other", [at(0, label=1), at(6), at(0, score=0.4)])
def test_another_class_place_or_a_low_score_is_not_a_finding(other: Detection) -> None:
    kept = retention([[at(0)]], [[other]])
    assert kept.found == 0
    assert kept.extra == (other.score >= 0.5)


def test_objects_that_the_original_was_unsure_of_are_neither_objects_nor_extra() -> None:
    assert retention([[at(0, 0.6)]], [[at(0)]]) == Retention(0, 0, 0, 1)
    assert Retention(0, 0, 0, 1).share == 1


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="same images"):
        retention([[]], [])
    with pytest.raises(ArgumentError, match="overlap is 2"):
        retention([], [], overlap=2)
    with pytest.raises(DataError, match="original has 1 images and compressed 0"):
        missed([[]], [])
    with pytest.raises(ArgumentError, match="confidence is -1"):
        missed([], [], confidence=-1)
