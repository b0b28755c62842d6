"""Turn the rows of `masks.py` into the README's table, mean and deviation over seeds, and draw it."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from de_plugin.compare.figures import looks


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return a Markdown table of rows."""
    rows = list(rows)
    sparsities = sorted({r["sparsity"] for r in rows})
    methods = list(dict.fromkeys(r["method"] for r in rows))
    lines = ["| method | " + " | ".join(f"{s:.0%}" for s in sparsities) + " |"]
    lines.append("|---" * (len(sparsities) + 1) + "|")
    for method in methods:
        cells = []
        for sparsity in sparsities:
            found = [r["accuracy"] for r in rows if r["method"] == method and r["sparsity"] == sparsity]
            if not found:
                cells.append("-")
            elif len(found) == 1:
                cells.append(f"{found[0]:.2f}")
            else:
                cells.append(f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read(text: str) -> dict[str, list[tuple[float, float, float]]]:
    """Return (sparsity in percent, mean, deviation) of each method in the first such table of a text."""
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("| method | 50%"))
    amounts = [float(x.strip().rstrip("%")) for x in lines[first].strip("| ").split("|")[1:]]
    found: dict[str, list[tuple[float, float, float]]] = {}
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (x.strip() for x in line.strip("| ").split("|"))
        for amount, cell in zip(amounts, cells, strict=True):
            if cell != "-":
                mean, _, deviation = cell.partition(" ± ")
                found.setdefault(name, []).append((amount, float(mean), float(deviation or 0)))
    return found


def draw(found: dict[str, list[tuple[float, float, float]]], path: Path) -> None:
    """Draw accuracy over sparsity, error bars over seeds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes = figure.subplots()
    for (_, name), look in looks([("", name) for name in found]).items():
        x, y, spread = zip(*found[name], strict=True)
        axes.errorbar(x, y, yerr=spread, label=name, **look)
    axes.set_xlabel("weights zeroed, %")
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(30, 100)
    axes.set_xticks([p[0] for p in next(iter(found.values()))])
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", ncols=2, fontsize=8)
    with rc_context({"svg.hashsalt": "masks"}):
        dateless = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=dateless, facecolor="white")


def main() -> None:
    """Print a Markdown table of the rows in all files given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="of masks.py, or a Markdown page with the table")
    parser.add_argument("--plot", type=Path, help="draw it into this picture, .svg or .png")
    options = parser.parse_args()
    pages = [f.read_text() for f in options.files]
    if all(f.suffix == ".json" for f in options.files):
        text = table(row for page in pages for row in json.loads(page)["rows"])
        print(text)
    else:
        [text] = pages
    if options.plot is not None:
        draw(read(text), options.plot)


if __name__ == "__main__":
    main()
