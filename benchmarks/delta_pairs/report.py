"""Puts the record of `make bench-delta` into docs/deltas.md: `python -m benchmarks.delta_pairs.report`; `--check` says if it is current."""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.delta_pairs.figures import HEADER_BYTES
from benchmarks.delta_pairs.listing import ROOT
from benchmarks.record import RESULTS

PAGE = ROOT / "docs" / "deltas.md"
BEGIN, END = "<!-- tables: made by `python -m benchmarks.delta_pairs.report`, never typed -->", "<!-- end of tables -->"
TOOLS = ("bsdiff", "xdelta3", "zstd --patch-from", "detools", "HDiffPatch")
METHODS = {0: "whole", 1: "patch", 2: "tensors", 3: "tensors"}


def main() -> int:
    """Write the page's tables, or only compare them."""
    record = json.loads((RESULTS / "delta.json").read_text())
    text = PAGE.read_text()
    new = re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: f"{BEGIN}\n{render(record)}\n{END}", text, flags=re.DOTALL)
    if "--check" in sys.argv:
        return int(new != text)
    PAGE.write_text(new)
    return 0


def render(record: dict[str, Any]) -> str:
    """All tables as Markdown."""
    pairs = record["details"]["pairs"]
    groups = {
        "Given pairs, int8 ONNX": [item for item in pairs if item["is_given"]],
        "Own pairs, int8 ONNX": [item for item in pairs if not item["is_given"] and item["format"] == "int8"],
        "Own pairs, int8 TFLite": [item for item in pairs if item["format"] == "tflite"],
        "Own pairs, float32 and float16 ONNX": [item for item in pairs if item["format"] in {"fp32", "fp16"}],
    }
    lines = [
        f"Measured {record['date'][:10]} on {record['machine']}; commit {record['commit'][:12]}.",
        "",
        "**Tools.** " + tools(record),
        "",
    ]
    for title, items in groups.items():
        if items:
            lines += [f"### {title}: bytes", "", *sizes(items, is_float="float" in title), ""]
    lines += ["### What it takes", "", *costs(pairs), ""]
    lines += ["### Large file", "", *large(record["rows"])]
    return "\n".join(lines)


def tools(record: dict[str, Any]) -> str:
    """Which tools took part, in which version; which did not, and why."""
    peers = record["details"]["peers"]
    parts = [f"{peer['name']}: left out, {peer['missing']}" if peer["missing"] else f"{peer['name']} {peer['version']}" for peer in peers]
    return "; ".join(parts) + "."


def sizes(items: Sequence[dict[str, Any]], *, is_float: bool) -> list[str]:
    """One row per pair: every tool's smallest delta, ours, and the bounds."""
    names = (*TOOLS, *(("ZipNN",) if is_float else ()))
    ends = ("Mooring", "times smaller", "wanted", *(() if is_float else ("entropy", "times at entropy", "weights changed")))
    lines = ["| pair | whole file | " + " | ".join((*names, *ends)) + " |", "|---" * (2 + len(names) + len(ends)) + "|"]
    for item in items:
        tool_sizes = [f"{item['tools'][name]['size']:,}" if name in item["tools"] else "–" for name in names]
        times = times_of(item)
        cells = [
            item["name"],
            f"{item['full_bytes']:,}",
            *tool_sizes,
            f"{item['ours']['size']:,} ({METHODS[item['ours']['method']]})",
            times,
        ]
        cells.append(f"{item['wanted_times']:g}" if item["wanted_times"] else "–")
        if not is_float:
            bound = f"{item['times'] * item['ours']['size'] / (item['entropy_bytes'] + HEADER_BYTES):.1f}" if item["times"] else "–"
            cells += [f"{item['entropy_bytes']:,}", bound, f"{item['weights_changed']:.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def times_of(item: dict[str, Any]) -> str:
    """How many times smaller, bold where it reaches what is wanted."""
    if not item["times"]:
        return "–"
    text = f"{item['times']:.2f}"
    return f"**{text}**" if item["times"] >= (item["wanted_times"] or 0) else f"{text} (missed)"


def costs(items: Sequence[dict[str, Any]]) -> list[str]:
    """CPU time and memory per pair, ours beside the tool with the smallest delta."""
    ends = ("best tool", "its encode, CPU s", "its decode, CPU s of the process", "its decode, MiB")
    lines = [
        "| " + " | ".join(("pair", "encode, CPU s", "decode, MB/s", "decode, MB above numpy", *ends)) + " |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in items:
        ours = item["ours"]
        cells = [item["name"], f"{ours['encode']['cpu_s']:.2f}", f"{ours['decode_mb_s']:.0f}", f"{ours['decode_memory_mb']:.1f}"]
        if item["best"]:
            best = item["tools"][item["best"]]
            cells += [
                item["best"],
                f"{best['encode']['cpu_s']:.2f}",
                f"{best['decode']['cpu_s']:.3f}",
                f"{best['decode']['memory_mib']:.0f}",
            ]
        else:
            cells += ["–"] * 4
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def large(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The large file's figures."""
    found = [row for row in rows if row["what"].startswith("large")]
    lines = ["| what | figure | wanted |", "|---|---|---|"]
    return lines + [f"| {row['what']} | {row['ours']:.4g} {row['unit']} | {row['target']} |" for row in found]


if __name__ == "__main__":
    sys.exit(main())
