"""Turn the rows of `dropin.py` into the README's table: a cell a line, what DE keeps and what others do."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

OURS = ("de", "de (weights)")
WEIGHTS = ("de (weights)", "level")
"""Methods that zero single weights; all others take channels."""
NAMES = {
    "lenet5": "LeNet-5",
    "resnet": "ResNet",
    "vit": "ViT",
    "crepe": "CREPE",
    "lenet300": "LeNet-300",
    "minilm": "MiniLM",
}
_SAME = 0.01
"""Rows whose multiplications differ by more are of another size and don't count."""

Row = dict[str, Any]


def cells(rows: list[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows that can be compared, in order, those with errors left out."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if "error" not in row:
            kind = "weights" if row["method"] in WEIGHTS else "channels"
            key = (row["network"], row["data"], row["ratio"], row["steps"], row["seed"], kind)
            found.setdefault(key, []).append(row)
    return found


def line(key: tuple[Any, ...], rows: list[Row]) -> str | None:
    """Return a line of the table; None where Directed Evolution or all others are missing."""
    ours = [row for row in rows if row["method"] in OURS]
    others = [
        row for row in rows if not row["method"].startswith("de") and ours and _comparable(row, ours[0])
    ]
    if not ours or not others:
        return None
    network, data, ratio, steps, seed, kind = key
    parts = [NAMES.get(network, network), *([data] if data not in ("mnist", "tones") else []), f"{ratio:.0%}"]
    parts += [] if kind == "channels" else ["weights"]
    parts += [f"{steps} step{'s' if steps > 1 else ''}", *([f"seed {seed}"] if seed else [])]
    shown = [_pair(ours[:1], others)]
    for corrected in (False, True):
        some = [row for row in others if ("(corrected)" in row["method"]) == corrected]
        shown.append(_pair(some, ours) if some else "")
    return f"| {', '.join(parts)} | {' | '.join(shown)} |"


def _comparable(row: Row, ours: Row) -> bool:
    known = row["macs"] and ours["macs"]
    return not known or abs(row["macs"] / ours["macs"] - 1) <= _SAME


def _pair(rows: list[Row], rivals: list[Row]) -> str:
    """Return the least divergence and the best accuracy, bold where no rival's is as good."""
    divergence, accuracy = min(r["divergence"] for r in rows), max(r["accuracy"] for r in rows)
    first = divergence < min(r["divergence"] for r in rivals)
    second = accuracy > max(r["accuracy"] for r in rivals)
    texts = (f"{divergence:.3g}", first), (f"{accuracy:.2f}", second)
    return " / ".join(f"**{text}**" if bold else text for text, bold in texts)


def main() -> None:
    """Print the table of one or more files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    found = [cells(json.loads(path.read_text())["rows"]) for path in parser.parse_args().files]  # a host each
    print("| network, share, steps | DE | best built-in of each column | best corrected |\n|---|---|---|---|")
    for key, some in (item for part in found for item in part.items()):
        text = line(key, some)
        if text:
            print(text)


if __name__ == "__main__":
    main()
