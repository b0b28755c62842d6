"""What is encoded comes back, in few bytes, and damaged bytes are refused or read as other symbols."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from de_plugin.encode import model
from de_plugin.encode.coder import decode_symbols, encode_symbols
from de_plugin.encode.fixed import (
    CURVATURE,
    LIMIT,
    LOGARITHM,
    NAT,
    ONE,
    PROBABILITY,
    log_odds,
    log_odds_of_two,
)
from de_plugin.encode.layouts import likely_layouts
from de_plugin.encode.mixing import Mixer
from de_plugin.encode.wavefront import FARTHEST, Layout, Sheet, natural_layout
from de_plugin.errors import ArgumentError, DEError

Symbols = npt.NDArray[np.int32]
LARGEST = 2**31 - 1
LARGE = "5a70fced1f572565e1aa53a1406414ac2f45dd76058ac24912e1449dbbbf6490"
DENSE = "792f2f60de440920d3504d25a3706740c0ae1e7dc5c6650ddf1832f7ccd0d3f9"


def back(symbols: Symbols) -> Symbols:
    found: Symbols = decode_symbols(encode_symbols(symbols), symbols.shape).numpy()
    return found


def sparse(shape: tuple[int, ...], density: float, largest: int, seed: int = 0) -> Symbols:
    rng = np.random.default_rng(seed)
    values = rng.integers(-largest, largest + 1, shape)
    return np.asarray(values * (rng.random(shape) < density), dtype=np.int32)


def entropy(symbols: Symbols) -> float:
    """Return the bytes that an ideal coder needs that knows how often each symbol occurs, and no more."""
    counts = np.unique(symbols, return_counts=True)[1]
    shares = counts / symbols.size
    return float(-(counts * np.log2(shares)).sum() / 8)


@given(
    hnp.arrays(
        np.int32,
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9),
        elements=st.one_of(st.just(0), st.integers(-4, 4), st.integers(-LARGEST - 1, LARGEST)),
    )
)
@settings(deadline=None, max_examples=60)
def test_any_symbols_come_back(symbols: Symbols) -> None:
    assert np.array_equal(back(symbols), symbols)


@pytest.mark.parametrize(
    "shape",
    [
        (),
        (1,),
        (1, 400),
        (400, 1),
        (30, 70),
        (20, 1, 5, 5),
        (50, 20, 3, 3),
        (2, 3000),
        (3000, 2),
        (8, 0),
        (9, 8, 7),
    ],
)
@pytest.mark.parametrize("density", [0.0, 0.03, 0.4, 1.0])
def test_every_shape_and_density_comes_back(shape: tuple[int, ...], density: float) -> None:
    for largest in (1, 6, 300):
        symbols = sparse(shape, density, largest)
        assert np.array_equal(back(symbols), symbols)


@pytest.mark.parametrize("value", [1, -1, 7])
def test_equal_symbols_take_next_to_nothing(value: int) -> None:
    symbols = np.full((100, 100), value, dtype=np.int32)
    assert np.array_equal(back(symbols), symbols)
    assert len(encode_symbols(symbols)) < 100


def test_zeros_take_nothing() -> None:
    assert encode_symbols(torch.zeros(1000, 1000, dtype=torch.int32)) == b""


@pytest.mark.parametrize(("density", "largest"), [(0.02, 3), (0.1, 7), (0.5, 7), (1.0, 7)])
def test_unrelated_symbols_take_what_their_entropy_says(density: float, largest: int) -> None:
    symbols = sparse((300, 330), density, largest)
    assert len(encode_symbols(symbols)) < 1.012 * entropy(symbols) + 30


def test_dead_columns_and_dense_rows_are_learnt() -> None:
    rng = np.random.default_rng(1)
    chance = np.outer(rng.choice([0.02, 0.4], 200), rng.choice([0.0, 1.0], 300))
    symbols = np.where(rng.random((200, 300)) < chance, rng.integers(-3, 4, (200, 300)), 0).astype(np.int32)
    assert len(encode_symbols(symbols)) < 0.8 * entropy(symbols)


def test_kernels_that_are_used_or_not_are_learnt() -> None:
    rng = np.random.default_rng(2)
    used = rng.random((64, 32, 1, 1)) < 0.1
    symbols = (used * rng.integers(-2, 3, (64, 32, 3, 3))).astype(np.int32)
    assert len(encode_symbols(symbols)) < 0.75 * entropy(symbols)


def test_the_format_stands() -> None:
    """These bytes are in users' files: a change here needs a new format version."""
    fixed = ((np.arange(6 * 40) * 7919) % 31 - 26).clip(0).astype(np.int32).reshape(6, 40)
    fixed[2] *= -1
    assert encode_symbols(fixed).hex() == GOLDEN
    assert np.array_equal(decode_symbols(bytes.fromhex(GOLDEN), (6, 40)).numpy(), fixed)


GOLDEN = "084ce9541813853fdc3cc55f7ad7073733782dcfe4196f"


def test_no_table_entry_is_near_a_half() -> None:
    """Libraries differ by a unit in the last place of a logarithm: nothing may be rounded differently."""
    counts = np.maximum(np.arange(len(LOGARITHM)), 1)
    odds = 1 / (1 + np.exp(-np.arange(-LIMIT, LIMIT + 1) / NAT))
    for exact, table in (
        (np.log(counts) * NAT, LOGARITHM),
        (odds * ONE, PROBABILITY),
        (np.maximum(odds * (1 - odds) * 65536, 1), CURVATURE),
    ):
        assert np.array_equal(np.rint(exact), table)
        near = np.abs(np.abs(exact - np.floor(exact)) - 0.5)
        assert float(near.min()) > 1e-9


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_damaged_bytes_are_refused_or_read_as_other_symbols(data: Any) -> None:
    symbols = sparse((12, 25), 0.3, 5)
    whole = bytearray(encode_symbols(symbols))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        found = decode_symbols(cut, symbols.shape)
    except DEError:
        return
    assert found.shape == symbols.shape
    assert found.dtype == torch.int32


def test_other_types_are_refused() -> None:
    with pytest.raises(ArgumentError, match="int32"):
        encode_symbols(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    "shape",
    [(1_000_000, 8), (8, 1_000_000), (1 << 22, 2), (1, 5_000_000), (300_000, 3, 3, 3), (4, 1, 1000, 1000)],
)
def test_the_sheet_of_a_matrix_is_not_much_larger_than_the_matrix(shape: tuple[int, ...]) -> None:
    layout = natural_layout(shape)
    down, across = layout.tiles()
    height, width = -(-layout.rows // down), -(-layout.columns // across)
    margin = max(2, *layout.distances, 2)
    cells = (height + width + margin) * (height + 1) * down * across
    assert cells <= 16 * math.prod(shape) + (1 << 20)


def test_a_sheet_gives_back_its_matrix() -> None:
    symbols = sparse((37, 91), 0.5, 9).reshape(-1)
    for steps in (0, 20, 200):
        assert np.array_equal(Sheet(natural_layout((37, 91)), symbols, steps).symbols(), symbols)


@pytest.mark.parametrize("shape", [(1 << 16, 2), (2, 1 << 16), (1 << 15, 4), (1 << 14, 9), (3, 1 << 15)])
def test_long_narrow_matrices_take_what_their_entropy_says(shape: tuple[int, ...]) -> None:
    symbols = sparse(shape, 0.05, 3)
    assert np.array_equal(back(symbols), symbols)
    assert len(encode_symbols(symbols)) < 1.03 * entropy(symbols) + 30


def test_log_odds_of_large_counts_keep_their_ratio() -> None:
    counts = np.array([1e6, 3e9, 1 << 18])
    for ratio in (0.3, 10.0):
        found = log_odds(counts, counts * ratio) / NAT
        assert np.allclose(found, -np.log(ratio), atol=0.01)


@pytest.mark.parametrize(
    "shape", [(1 << 26, 2), (1 << 20, 64), (1024, 512, 3, 3), (50000, 768), (4096, 4096), (1 << 28,)]
)
@pytest.mark.parametrize("hurried", [False, True])
def test_no_step_is_so_long_that_its_sums_are_rounded(shape: tuple[int, ...], hurried: bool) -> None:
    """Inputs of at most 12 x 256 times errors of at most 2**22 are summed exactly below 2**53."""
    layout = dataclasses.replace(natural_layout(shape), hurried=hurried)
    down, across = layout.tiles()
    front = min(-(-layout.rows // down), -(-layout.columns // across)) * down * across
    assert front * (LIMIT + 128) * ONE < 2**53


def test_the_channels_of_a_flattened_layer_are_found_where_that_saves_bytes() -> None:
    rng = np.random.default_rng(0)
    alive = np.repeat(rng.random((60, 10)) < 0.3, 16, axis=1)
    symbols = np.asarray(rng.integers(-3, 4, (60, 160)) * alive, dtype=np.int32)
    layout = natural_layout(symbols.shape)
    [*_, likely] = likely_layouts(symbols.reshape(-1), layout)
    assert likely.group % 16 == 0
    data = encode_symbols(symbols)
    assert data[0] & 1  # the head says that a layout follows
    assert np.array_equal(back(symbols), symbols)
    assert len(data) < 0.97 * len(model.write(symbols.reshape(-1), layout, 3))


def test_the_channels_of_a_large_layer_are_found_by_its_first_rows() -> None:
    rng = np.random.default_rng(0)
    alive = np.repeat(rng.random((400, 50)) < 0.3, 16, axis=1)
    symbols = np.asarray(rng.integers(-3, 4, (400, 800)) * alive, dtype=np.int32)
    data = encode_symbols(symbols)
    assert data[0] & 1
    assert data[1] % 16 == 0  # the head names the group
    assert len(data) < 0.97 * len(model.write(symbols.reshape(-1), natural_layout(symbols.shape), 3))
    assert np.array_equal(back(symbols), symbols)


@pytest.mark.parametrize("hurried", [False, True])
@pytest.mark.parametrize("kernel", [(32, 32), (31, 31), (28, 28), (1, 1000), (7, 7)])
@pytest.mark.parametrize("channels", [(768, 3), (1024, 1), (96, 16), (32, 65)])
def test_wide_kernels_take_no_more_memory_than_others(
    channels: tuple[int, int], kernel: tuple[int, int], hurried: bool
) -> None:
    layout = dataclasses.replace(natural_layout((*channels, *kernel)), hurried=hurried)
    down, across = layout.tiles()
    height, width = -(-layout.rows // down), -(-layout.columns // across)
    cells = (height + width + max(layout.distances)) * (height + 1) * down * across
    assert cells <= 32 * layout.rows * layout.columns + (1 << 20)
    assert height + width > 40  # so many steps that something is learnt


@given(st.integers(1, 3000), st.integers(1, 5000), st.data())
def test_whatever_layout_a_file_names_takes_little_memory(
    rows: int, columns: int, data: st.DataObject
) -> None:
    group = data.draw(st.integers(1, min(FARTHEST, columns)))
    line = data.draw(st.integers(0, min(FARTHEST, columns - 1)))
    layout = Layout(rows, columns, group, line, data.draw(st.booleans()))
    down, across = layout.tiles()
    height, width = -(-rows // down), -(-columns // across)
    cells = (height + width + max([2, *layout.distances])) * (height + 1) * down * across
    assert cells <= 64 * rows * columns + (1 << 21)


def test_a_rare_input_counts_for_the_curvature_as_it_does_for_the_gradient() -> None:
    rng = np.random.default_rng(0)
    inputs = np.rint(rng.normal(0, 300, (3, 20000)))
    inputs[2] *= rng.random(20000) < 0.001
    bits = (rng.random(20000) < 0.1).astype(np.int32)
    mixer = Mixer([0.3, 0.3, 0.3], 4.0)
    predicted = mixer.predict(inputs) / ONE
    mixer.learn(bits)
    error = bits - predicted
    curvature = (predicted * (1 - predicted) + error**2) / 2
    nats = inputs / NAT
    step = np.linalg.solve(4 * np.eye(3) + (nats * curvature) @ nats.T, nats @ error)
    unit = np.rint(rng.normal(0, 300, (3, 50)))
    expected = 1 / (1 + np.exp(-(0.3 + step) @ unit / NAT))
    assert np.allclose(mixer.predict(unit) / ONE, expected, atol=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_noise_takes_hardly_more_bytes_than_its_entropy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (512, 256, 3, 3)
    symbols = np.rint(rng.uniform(-7.4, 7.4, shape)) * (rng.random(shape) < 0.01)
    symbols = symbols.astype(np.int32)
    assert len(encode_symbols(symbols)) < 1.015 * entropy(symbols)


def test_the_streams_of_dense_tensors_stand() -> None:
    """From version 0.1.0 on, files that were written stay readable: these bytes must not change."""
    symbols = (np.arange(160 * 200, dtype=np.int32).reshape(160, 200) * 7919 % 31) - 15
    assert hashlib.sha256(encode_symbols(symbols)).hexdigest() == DENSE
    assert np.array_equal(back(symbols), symbols)


def test_the_streams_of_large_tensors_stand() -> None:
    """The same for steps so long that a sample of their bits is enough."""
    places = np.arange(512 * 2304, dtype=np.int64).reshape(512, 256, 3, 3)
    symbols = np.where(places * 7919 % 1009 < 40, places * 104729 % 7 - 3, 0).astype(np.int32)
    data = encode_symbols(symbols)
    assert hashlib.sha256(data).hexdigest() == LARGE
    assert np.array_equal(decode_symbols(data, symbols.shape).numpy(), symbols)


@pytest.mark.parametrize("shape", [(256, 384), (128, 64, 3, 3), (40000,), (60, 80, 1, 20)])
def test_dense_tensors_take_fewer_steps_and_hardly_more_bytes(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    rows = 1 + rng.random((shape[0], *[1] * (len(shape) - 1)))
    dense = np.rint(rng.standard_normal(shape) * rows).astype(np.int32)
    natural, largest = natural_layout(shape), int(np.abs(dense).max())
    data, plain = encode_symbols(dense), model.write(dense.reshape(-1), natural, largest)
    hurried = dataclasses.replace(natural, hurried=True)
    assert Sheet(hurried, None).steps < 0.8 * Sheet(natural, None).steps
    assert data[0] & 1  # the head says so
    assert len(data) <= 1.004 * len(plain) + 4
    assert np.array_equal(back(dense), dense)
    thinned = dense * (rng.random(shape) < 0.1)
    assert not encode_symbols(thinned.astype(np.int32))[0] & 1


@given(st.floats(0, 2**40), st.floats(0, 2**40))
def test_log_odds_of_a_pair_are_those_of_arrays(one: float, zero: float) -> None:
    assert log_odds(np.array([one]), np.array([zero]))[0] == log_odds_of_two(one, zero)
