"""Evolution of genomes: it finds minima, repeats itself for a seed and refuses what it cannot rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cmaes import SepCMA
from numpy.typing import NDArray

from de_plugin.errors import ArgumentError
from de_plugin.evolve import Search

Vector = NDArray[np.float64]


def quadratic(genes: int, seed: int = 0) -> tuple[Vector, Vector]:
    """Return a rotated quadratic form of condition 100 and its minimum."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((genes, genes)))[0]
    return turn @ np.diag(np.logspace(0, 2, genes)) @ turn.T, rng.standard_normal(genes)


def run(search: Search, matrix: Vector, best: Vector, generations: int) -> Vector:
    seen = []
    for _ in range(generations):
        genomes = search.ask()
        seen.append(genomes)
        away = genomes - best
        search.tell(np.einsum("ni,ij,nj->n", away, matrix, away))
    return np.concatenate(seen)


def make(genes: int = 5, seed: int = 3, **options: Any) -> Search:
    given = {"mean": np.zeros(genes), "deviation": np.ones(genes), "population": 12, **options}
    return Search(seed=seed, **given)


def test_it_minimises_a_rotated_quadratic() -> None:
    matrix, best = quadratic(5)
    search = make()
    run(search, matrix, best, 150)
    assert np.abs(search.centre - best).max() < 1e-3


def test_it_learns_with_a_diagonal_covariance_above_64_genes() -> None:
    assert not isinstance(make(64)._cma, SepCMA)
    search = make(65)
    assert isinstance(search._cma, SepCMA)
    rng = np.random.default_rng(1)
    best = rng.standard_normal(65)
    run(search, np.eye(65), best, 150)
    assert np.square(search.centre - best).sum() < 0.2 * np.square(best).sum()


def test_only_ranks_count() -> None:
    matrix, best = quadratic(4)
    first, second = make(4), make(4)
    for _ in range(5):
        genomes = first.ask()
        assert np.array_equal(genomes, second.ask())
        values = np.einsum("ni,ij,nj->n", genomes - best, matrix, genomes - best)
        first.tell(values)
        second.tell(np.exp(values / values.max()))


def test_the_same_seed_gives_the_same_genomes() -> None:
    matrix, best = quadratic(5)
    one, two, other = (run(make(seed=s), matrix, best, 6) for s in (3, 3, 4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_the_first_genome_is_the_mean_and_asking_twice_changes_nothing() -> None:
    search = make(3, mean=np.array([1.0, -2.0, 5.0]))
    genomes = search.ask()
    assert genomes.shape == (12, 3)
    assert np.array_equal(genomes[0], [1.0, -2.0, 5.0])
    assert np.array_equal(genomes, search.ask())


def test_deviations_scale_each_gene() -> None:
    search = make(2, deviation=np.array([1e-3, 10.0]), population=200)
    spread = search.ask().std(0)
    assert spread[0] < 2e-3
    assert 5 < spread[1] < 20


def test_a_new_search_around_the_centre_is_wide_again() -> None:
    matrix, best = quadratic(5)
    search = make()
    run(search, matrix, best, 120)
    centre = search.centre.copy()
    assert search.ask().std(0).max() < 0.1
    search = Search(centre, search.deviation, search.population, seed=9)
    assert np.allclose(search.centre, centre)
    genomes = search.ask()
    assert np.allclose(genomes[0], centre)
    assert genomes.std(0).min() > 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": np.zeros(1), "deviation": np.ones(1)}, "mean"),
        ({"mean": np.zeros(3), "deviation": np.ones(4)}, "deviation"),
        ({"mean": np.zeros((2, 2)), "deviation": np.ones((2, 2))}, "mean"),
        ({"deviation": np.array([1.0, 0, 1, 1, 1])}, "deviation"),
        ({"deviation": np.full(5, np.nan)}, "deviation"),
        ({"population": 3}, "population=3"),
    ],
)
def test_arguments_that_cannot_work_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make(**options)


def test_values_must_be_numbers_one_a_genome() -> None:
    search = make()
    with pytest.raises(ArgumentError, match="values"):
        search.tell(np.zeros(12))
    search.ask()
    with pytest.raises(ArgumentError, match="1 NaN"):
        search.tell(np.array([np.nan, *range(11)], dtype=float))
    with pytest.raises(ArgumentError, match="got 11"):
        search.tell(np.zeros(11))


def test_infinite_values_rank_last() -> None:
    search = make(2)
    genomes = search.ask()
    search.tell(np.where(genomes[:, 0] > 0, np.inf, 0.0))
    assert search.centre[0] < 0
