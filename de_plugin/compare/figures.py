"""Figures of a comparison: score and divergence over size, sparsity by layer, divergence over evaluations."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from de_plugin.compare.comparison import Comparison
from de_plugin.compare.summary import Cell, cells, is_ours
from de_plugin.compare.text import OVER, TITLES, amount, label, measures, tasks
from de_plugin.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""The colour of text and lines: near black, and told from all others, so that a page can make it its own."""

_CONTENT = {"sparsity": (1.0, "sparsity", "sparse"), "bits": (8.0, "bits a weight", "many bits")}
_COLOURS = ("#3b8fd4", "#009e73", "#cc79a7", "#56b4e9", "#8c6d31", "#9467bd", "#7f7f7f", "#b5bd00", "#1f9e9e")
_OURS = ("#d55e00", "#e69f00", "#c2185b", "#f0a060", "#8c4a2f")
_MARKERS = "osD^vP*X<>"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "errorbar.capsize": 2.0,
}


@dataclass(frozen=True)
class Drawing:
    """A figure as files.

    Attributes:
        name: of its files, without a suffix.
        task: whose it is.
        title: what it shows, a few words.
        text: the same in a sentence, for who cannot see it.
        svg: the drawing, its text kept as text.
        png: the same as pixels.
    """

    name: str
    task: str
    title: str
    text: str
    svg: str
    png: bytes


def check() -> None:
    """Refuse to begin where figures cannot be made.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("figures need matplotlib: pip install 'de_plugin[report]'") from error


def drawings(comparison: Comparison) -> list[Drawing]:
    """Return all figures of a comparison, in the order of a report.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    check()
    result = []
    for task in tasks(comparison):
        found = [cell for cell in cells(comparison, task) if cell.rows]
        if found:
            result += [
                *_curves_of_size(comparison, task, found),
                *_layers(task, found),
                *_searches(task, found),
            ]
    return result


def _drawn(
    name: str, task: str, title: str, text: str, size: tuple[float, float], draw: Callable[[Axes], None]
) -> Drawing:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure: Figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        vector, pixels = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        figure.savefig(pixels, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Drawing(name, task, title, text, vector.getvalue(), pixels.getvalue())


def _slug(*parts: object) -> str:
    text = "-".join(str(p) for p in parts).lower()
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in text)


# -- score and divergence over size ----------------------------------------------------------------


def _curves_of_size(comparison: Comparison, task: str, found: list[Cell]) -> Iterator[Drawing]:
    whole = comparison.intact.get("macs")
    over = "multiplications left, %" if task == "channels" and whole else OVER[task]
    hosts = list(dict.fromkeys(c.host for c in found))
    for measure, title, _ in measures(comparison):
        for host in hosts:
            mine = [c for c in found if c.host == host]
            if not any(is_ours(c.method) for c in mine):  # something to see it against
                mine += [c for c in found if (c.host, c.method) == ("de_plugin", "de")]

            def draw(
                axes: Axes,
                mine: list[Cell] = mine,
                measure: str = measure,
                title: str = title,
                host: str = host,
            ) -> None:
                _lines(axes, task, host, mine, measure, whole)
                axes.set_xlabel(over)
                if task == "weights" or (task == "channels" and not whole):
                    axes.set_xticks(sorted({_position(task, c, whole) for c in mine}))
                axes.set_ylabel(title)
                if measure == "divergence":
                    axes.set_yscale("log")

            best = [c for c in mine if measure in c.best]
            tail = "; ".join(f"at {amount(task, c.sparsity)} {c.method}" for c in best)
            what = f"{TITLES[task]}, {host}: {title} over {over}"
            text = f"{what}, one line a method." + (f" The best of all hosts: {tail}." if tail else "")
            height = 3.1 + 0.17 * -(-len({(c.host, c.method) for c in mine}) // 2)
            yield _drawn(_slug(task, measure, host), task, what, text, (4.8, height), draw)


def _lines(axes: Axes, task: str, host: str, found: list[Cell], measure: str, whole: float | None) -> None:
    for key, look in looks([(c.host, c.method) for c in found]).items():
        points = []
        for cell in found:
            value = cell.value(measure)
            if (cell.host, cell.method) != key or value is None:
                continue
            if measure == "divergence" and not value.mean > 0:
                continue
            points.append((_position(task, cell, whole), value.mean, value.deviation))
        if not points:
            continue
        x, y, spread = zip(*points, strict=True)
        name = key[1] if key[0] == host else f"{key[1]} ({key[0]})"
        axes.errorbar(x, y, yerr=[_below(y, spread, measure), spread], label=label(name), **look)
    axes.figure.legend(loc="outside lower center", ncols=2)


def _below(y: tuple[float, ...], spread: tuple[float, ...], measure: str) -> tuple[float, ...]:
    """Return how far error bars reach down: on a logarithmic axis not to zero."""
    if measure != "divergence":
        return spread
    return tuple(min(s, 0.9 * v) for v, s in zip(y, spread, strict=True))


def _position(task: str, cell: Cell, whole: float | None) -> float:
    if task == "bits":
        size = cell.value("bytes")
        return cell.sparsity if size is None else size.mean / 1000
    macs = cell.value("macs")
    if task == "channels" and whole and macs is not None:
        return 100 * macs.mean / whole
    return 100 * cell.sparsity


def _colours(keys: list[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return colours where all methods are Directed Evolution or a hybrid of it."""
    every = (*_OURS, *_COLOURS)
    return {
        key: {
            "color": every[n % len(every)],
            "linewidth": 1.4,
            "linestyle": ("-", "--", ":")[n // len(_OURS) % 3],
        }
        for n, key in enumerate(dict.fromkeys(keys))
    }


def looks(keys: list[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return colour, marker and line of each method: warm and thick for Directed Evolution."""
    result: dict[tuple[str, str], dict[str, Any]] = {}
    ours = theirs = 0
    for key in dict.fromkeys(keys):
        if is_ours(key[1]):
            look: dict[str, Any] = {"color": _OURS[ours % len(_OURS)], "linewidth": 2.2, "zorder": 3}
            look["marker"] = _MARKERS[ours % len(_MARKERS)]
            ours += 1
        else:
            look = {"color": _COLOURS[theirs % len(_COLOURS)], "linewidth": 1.1}
            look |= {"marker": _MARKERS[theirs % len(_MARKERS)], "markersize": 4}
            look["linestyle"] = "-" if theirs < len(_COLOURS) else "--"
            theirs += 1
        result[key] = look
    return result


# -- sparsity and bits by layer --------------------------------------------------------------------


def _layers(task: str, found: list[Cell]) -> Iterator[Drawing]:
    most, what_of, dark = _CONTENT["bits" if task == "bits" else "sparsity"]
    amounts = sorted({c.sparsity for c in found})
    for value in amounts:
        mine = [c for c in found if c.sparsity == value and c.rows[0].layers]
        tables = {tuple(c.rows[0].layers) for c in mine}
        if not mine or (len(tables) == 1 and value != amounts[len(amounts) // 2]):
            continue
        names = [name for name, _ in mine[0].rows[0].layers]
        values = [[_mean(cell, n) for n in range(len(names))] for cell in mine]
        rows = [label(f"{c.host}: {c.method}") for c in mine]

        def draw(
            axes: Axes,
            names: list[str] = names,
            values: list[list[float]] = values,
            rows: list[str] = rows,
        ) -> None:
            _heat(axes, names, values, rows, most)

        what = f"{TITLES[task]}: {what_of} by layer at {amount(task, value)}"
        text = f"{what}: one line a method, one column a layer; dark is {dark}. The numbers are in rows.json."
        size = (max(4.8, 2.6 + 0.42 * len(names)), 1.2 + 0.21 * len(mine))
        yield _drawn(_slug(task, "layers", f"{value:g}".replace(".", "_")), task, what, text, size, draw)


def _mean(cell: Cell, layer: int) -> float:
    return sum(row.layers[layer][1] for row in cell.rows) / len(cell.rows)


def _heat(axes: Axes, names: list[str], values: list[list[float]], rows: list[str], most: float) -> None:
    axes.pcolormesh(values, cmap="Blues", vmin=0, vmax=most, edgecolors="white", linewidth=0.5)
    axes.grid(visible=False)
    axes.invert_yaxis()
    axes.set_xticks([n + 0.5 for n in range(len(names))], [label(n) for n in names], rotation=45, ha="right")
    axes.set_yticks([n + 0.5 for n in range(len(rows))], rows, fontsize=7)
    if len(names) > 16:
        return
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            colour = "white" if value > 0.55 * most else "#08306b"
            told = f"{100 * value:.0f}" if most == 1 else f"{value:.2g}"
            axes.text(x + 0.5, y + 0.5, told, ha="center", va="center", fontsize=6.5, color=colour)


# -- divergence over evaluations -------------------------------------------------------------------


def _searches(task: str, found: list[Cell]) -> Iterator[Drawing]:
    for value in sorted({c.sparsity for c in found}):
        mine = [c for c in found if c.sparsity == value and any(len(r.curve) > 1 for r in c.rows)]
        if not mine:
            continue

        def draw(axes: Axes, mine: list[Cell] = mine) -> None:
            shades = _colours([(c.host, c.method) for c in mine])
            for cell in mine:
                look = shades[cell.host, cell.method]
                for number, row in enumerate(cell.rows):
                    points = [(n, v) for n, v in row.curve if v > 0]
                    name = label(f"{cell.host}: {cell.method}") if number == 0 else "_"
                    axes.plot([n for n, _ in points], [v for _, v in points], label=name, **look)
            axes.set_yscale("log")
            axes.set_xlabel("evaluations")
            axes.set_ylabel("best divergence so far")
            axes.figure.legend(loc="outside lower center", ncols=2)

        what = f"{TITLES[task]}: divergence over evaluations at {amount(task, value)}"
        text = (
            f"{what}, one line a search and seed, on the search's own samples. Searches in several cycles "
            "begin at lower sparsity, so that their lines rise in steps."
        )
        height = 3.1 + 0.17 * -(-len(mine) // 2)
        yield _drawn(
            _slug(task, "search", f"{value:g}".replace(".", "_")), task, what, text, (4.8, height), draw
        )
