"""`compare`: the same for all methods, each in isolation, and nothing of it left in the user's model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from de_plugin import Comparison, compare
from de_plugin.compare import Case, Method, Pruned, Row, Step
from de_plugin.compare.own import CRITERIA, HYBRIDS
from de_plugin.errors import ArgumentError, DataError, MissingDependencyError, ModeError, SelectionError
from tests.compare.small import BROKEN, ZEROING, data, network

X, Y = data()


def compared(**options: Any) -> Comparison:
    given = {
        "hosts": (),
        "budget": 40,
        "sparsities": (0.5,),
        "ratios": (0.5,),
        "test": data(40, 1),
        **options,
    }
    return compare(network(), (X, Y), **given)


@pytest.fixture(scope="module")
def everything() -> Comparison:
    return compared(task=("weights", "channels"))


def test_every_method_of_engine_and_torch_has_its_row(everything: Comparison) -> None:
    assert [r for r in everything.rows if r.failed] == []
    names = {(r.task, r.host, r.method) for r in everything.rows}
    for task in ("weights", "channels"):
        assert {(task, "de_plugin", n) for n in ("de", *HYBRIDS, *CRITERIA)} <= names
    assert ("weights", "torch", "l1_unstructured (global)") in names
    assert ("channels", "torch", "ln_structured (l2)") in names
    assert len(names) == len(everything.rows)


def test_all_rows_of_a_cell_are_of_equal_size(everything: Comparison) -> None:
    for row in everything.rows:
        assert row.density == pytest.approx(0.5, abs=0.01)
    macs = {r.macs for r in everything.rows if r.task == "channels"}
    assert len(macs) == 1
    whole = everything.intact["macs"]
    assert whole == 16 * 4 * 9 + 64 * 10 + 10 * 3
    assert macs == {16 * 2 * 9 + 32 * 5 + 5 * 3}


def test_rows_hold_what_was_measured(everything: Comparison) -> None:
    assert everything.settings.score == "test accuracy, %"
    assert everything.settings.measured_on == "test data"
    assert everything.settings.keep == ("5",)
    assert everything.intact["score"] == 100
    for row in everything.rows:
        assert row.score is not None
        assert row.divergence is not None
        assert 0 <= row.score <= 100
        assert row.evaluations is not None
        assert row.seconds >= 0
        assert [n for n, _ in row.layers] == [
            f"{n}.weight" for n in ((0, 3, 5) if row.task == "weights" else (0, 3))
        ]
    searched = [r for r in everything.rows if r.method == "de"]
    assert all(r.curve and r.evaluations and r.evaluations >= 40 for r in searched)
    assert everything.versions["torch"] == torch.__version__


def test_the_model_is_not_touched_and_numbers_do_not_depend_on_order() -> None:
    model = network()
    before = {n: x.clone() for n, x in model.state_dict().items()}
    first = compare(model, (X, Y), hosts=(), methods=["random*", "de"], budget=40, sparsities=(0.5,))
    torch.manual_seed(123)
    again = compare(model, (X, Y), hosts=(), methods=["de", "random"], budget=40, sparsities=(0.7, 0.5))
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    assert model[0].weight.grad is None
    for row in first.rows:
        twin = [r for r in again.rows if r.key == row.key]
        assert [_plain(r) for r in twin] in ([], [_plain(row)])
    assert first.settings.measured_on == "calibration data"
    assert first.settings.score == ""
    assert all(r.score is None for r in first.rows)


def _plain(row: Row) -> dict[str, Any]:
    return {k: v for k, v in row.to_dict().items() if k != "seconds"}


def test_a_method_that_fails_is_a_row_that_says_why_and_hurts_no_other() -> None:
    alone = compared(methods=[ZEROING, "magnitude"])
    state, grad = torch.random.get_rng_state(), torch.is_grad_enabled()
    among = compared(methods=[BROKEN, ZEROING, "magnitude"])
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.is_grad_enabled() == grad
    failed = [r for r in among.rows if r.failed]
    assert [(r.method, r.error) for r in failed] == [("broken", "RuntimeError: a host's <b>own</b> bug")]
    assert failed[0].divergence is None
    assert [_plain(r) for r in among.rows if not r.failed] == [_plain(r) for r in alone.rows]
    assert among.failed == tuple(failed)
    assert "broken, 50 %, seed 0: RuntimeError" in str(among)


def test_a_method_that_wants_to_end_the_process_ends_itself_only() -> None:
    def leaving(_: Case) -> Pruned:
        sys.exit(-1)

    rows = compared(methods=[Method("weights", "mine", "leaving", leaving), ZEROING]).rows
    assert [(r.method, r.error) for r in rows] == [("leaving", "SystemExit: -1"), ("zeroing", "")]


def test_outputs_that_are_not_finite_are_a_failure() -> None:
    def exploding(case: Case) -> Pruned:
        model = case.copy()
        model.get_parameter("0.weight").data.fill_(float("nan"))
        return Pruned(model)

    [row] = compared(methods=[Method("weights", "mine", "exploding", exploding)]).rows
    assert "not finite" in row.error


def test_labels_are_missed_by_those_who_need_them_only() -> None:
    def labelled(case: Case) -> Pruned:
        return Pruned(case.copy(), evaluations=len(case.labels))

    method = Method("weights", "mine", "labelled", labelled)
    found = compare(network(), X, hosts=(), methods=["magnitude", method], sparsities=(0.5,))
    assert [bool(r.error) for r in found.rows] == [False, True]
    assert found.rows[1].error.startswith("DataError: data: this method reads labels")
    with pytest.raises(DataError):
        compare(network(), [], hosts=())


def test_methods_are_chosen_by_name_glob_and_host() -> None:
    def names(*methods: str) -> list[str]:
        return [r.method for r in compared(methods=methods).rows]

    assert names("magnitude") == ["magnitude"]
    assert names("torch:*global*") == ["l1_unstructured (global)", "random_unstructured (global)"]
    assert names("torch:l1_unstructured", "wanda") == ["wanda", "l1_unstructured"]
    with pytest.raises(ArgumentError, match="'magnitud' stands for none of .*de_plugin:de"):
        compared(methods=["magnitud"])
    with pytest.raises(ArgumentError, match="is there twice"):
        compared(methods=[ZEROING, ZEROING])
    with pytest.raises(ArgumentError, match=r"methods='de'"):
        compared(methods="de")


def test_a_metric_of_ones_own_is_the_score() -> None:
    def zeros(model: nn.Module) -> float:
        return float(sum(int((p == 0).sum()) for p in model.parameters()))

    found = compared(methods=["magnitude"], metric=zeros)
    assert found.settings.score == "zeros"
    assert found.rows[0].score == round(0.5 * (36 + 640 + 30))
    assert found.intact["score"] == 0


def test_layers_that_keep_their_channels_are_named_or_the_last() -> None:
    found = compared(task="channels", methods=["magnitude"], keep=["0", "5"])
    assert [n for n, _ in found.rows[0].layers] == ["3.weight"]
    assert found.settings.keep == ("0", "5")
    with pytest.raises(SelectionError, match="keep: 'fc' names no layer; there are 0, 3, 5"):
        compared(task="channels", keep=["fc"])


def test_other_granularities_are_for_the_engine() -> None:
    found = compared(methods=["magnitude", "l1_unstructured"], granularity="2:4")
    assert [r.error[:25] for r in found.rows] == ["", "ArgumentError: granularit"]


def test_progress_is_told_at_the_beginning_and_end_of_each_row() -> None:
    steps: list[Step] = []
    compared(methods=["magnitude", "wanda"], seeds=(0, 1), progress=steps.append)
    assert [s.done for s in steps] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert [s.row is None for s in steps] == [True, False] * 4
    assert {s.total for s in steps} == {4}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "width"}, ArgumentError, "task='width'"),
        ({"sparsities": (50,)}, ArgumentError, "write 0.5"),
        ({"budget": 0}, ArgumentError, "evaluations=0"),
        ({"budget": True}, ArgumentError, "budget=True"),
        ({"samples": 0}, ArgumentError, "samples"),
        ({"batch_size": 0}, ArgumentError, "batch_size"),
        ({"hosts": "nni"}, ArgumentError, r"hosts='nni'"),
        ({"hosts": ["no-such-host"]}, ArgumentError, "'no-such-host' is none"),
        ({"divergence": "far"}, ArgumentError, "divergence='far'"),
        ({"include": ["fc*"]}, SelectionError, "include"),
        ({"task": "bits", "methods": [ZEROING]}, ArgumentError, "none of the hosts offers any for bits"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    options: Mapping[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compared(**options)


def test_a_model_in_train_mode_is_refused() -> None:
    with pytest.raises(ModeError):
        compare(network().train(), X, hosts=())


def test_pandas(everything: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    frame = everything.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(everything.rows)
    assert list(frame.method) == [r.method for r in everything.rows]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="pip install pandas"):
        everything.to_pandas()


def test_the_table_marks_the_best_of_equal_size(everything: Comparison) -> None:
    text = str(everything)
    assert "Single weights: test accuracy, %" in text
    assert "Whole channels: divergence (test data)" in text
    assert "*" in text


def test_bits_of_weights_are_a_task_for_hosts_that_have_methods_for_it() -> None:
    def rounded(case: Case) -> Pruned:
        model, levels = case.copy(), 2 ** (case.sparsity - 1)
        for name in case.weights:
            weight = model.get_parameter(name).data
            weight.copy_((weight * levels).round() / levels)
        return Pruned(model, bits=case.sparsity)

    methods = [Method("bits", "mine", name, rounded) for name in ("rounded", "again")]
    found: Any = compared(task="bits", bits=(8, 3), methods=methods)
    assert [(r.sparsity, r.bits) for r in found.rows] == [(8, 8), (3, 3)] * 2
    assert found.rows[0].divergence < found.rows[1].divergence
    assert "Bits of weights: test accuracy, %" in str(found)
