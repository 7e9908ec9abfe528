"""The figures of the latest results in docs/drift-figures.md: `python -m benchmarks.drift.figures`; made, never typed."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "drift-figures.md"
BEGIN, END = "<!-- figures: made by `python -m benchmarks.drift.figures`, never typed -->", "<!-- end of figures -->"


def render(document: Mapping[str, Any]) -> str:
    """The tables of a result, Markdown."""
    details = document["details"]
    lines = [f"Run of {document['date']} on {document['machine']}. Everything in this section is simulated.", ""]
    lines += ["| what | figure | unit | peer | target | met |", "|---|---|---|---|---|---|"]
    for row in document["rows"]:
        peer = "–" if row["peer"] is None else f"{row['peer']:.4g} ({row['peer_name']})"
        lines.append(
            f"| {row['what']} | {row['ours']:.4g} | {row['unit']} | {peer} | {row['target']} | {'yes' if row['met'] else '**no**'} |"
        )
    for title in ("ours", "blocks of DRIFT 5.4"):
        lines += ["", f"**{title}**", "", *_table(details[title])]
    for kind, table in details["by stream"].items():
        if table:
            lines += ["", f"**ours, {kind} streams**", "", *_table(table)]
    shares = details["peers at their defaults"]
    lines += ["", "| peer, at its defaults | share of clean simulated windows with an alarm |", "|---|---|"]
    for peer, found in shares.items():
        told = found if isinstance(found, str) else ", ".join(f"{stream} {share:.0%}" for stream, share in found["share"].items())
        lines.append(f"| {peer} | {told} |")
    return "\n".join(lines)


def main() -> int:
    """Write the tables of drift.json, or of drift_quick.json where there is none, into the page."""
    results = ROOT / "benchmarks" / "results"
    path = next((results / name for name in ("drift.json", "drift_quick.json") if (results / name).exists()), None)
    if path is None:
        print("no result yet: make bench-drift-quick")
        return 1
    text = PAGE.read_text()
    made = f"{BEGIN}\n{render(json.loads(path.read_text()))}\n{END}"
    PAGE.write_text(re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: made, text, flags=re.DOTALL))
    return 0


def _table(table: Mapping[str, Any]) -> list[str]:
    kinds = list(next(iter(table.values()))["median delay"])
    lines = ["| asked | alarms in device-years | rate | 95 % bound | " + " | ".join(f"{kind}: median, mean" for kind in kinds) + " |"]
    lines.append("|" + "---|" * (4 + len(kinds)))
    for asked, found in table.items():
        delays = " | ".join(f"{found['median delay'][kind]:.0f}, {found['mean delay'][kind]:.0f}" for kind in kinds)
        rate = f"{found['alarms']} in {found['device-years']:.0f} | {found['rate']:.2f} | {found['bound']:.2f}"
        lines.append(f"| {asked.removesuffix(' asked')} per year | {rate} | {delays} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
