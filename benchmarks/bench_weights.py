"""What the agent weighs as a guest: importing its service and its inference process, beside the libraries they stand on alone."""

import json
import os
import statistics
import subprocess
import sys

from benchmarks.record import compare, interleave, measure, write

#: The third-party libraries the control process stands on; the difference to it is what our own code costs.
LIBRARIES = "paho.mqtt.client, pydantic, httpx, numpy, cryptography.x509, sqlite_utils"
#: The inference process stands on numpy until a source and a model are opened.
WORKER, WORKERS_LIBRARY = "agent.inference.worker", "numpy"
PROGRAM = """
import json, resource, sys
import {modules}
with open("/proc/self/statm") as f:
    rss = int(f.read().split()[1]) * resource.getpagesize()
use = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([rss / 2**20, len(sys.modules), (use.ru_utime + use.ru_stime) * 1000]))
"""
ROUNDS = 9


def _figures(modules: str) -> tuple[float, float, float]:
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    output = subprocess.run([sys.executable, "-c", PROGRAM.format(modules=modules)], capture_output=True, check=True, env=environment)
    rss, modules_count, cpu = json.loads(output.stdout)
    return rss, modules_count, cpu


def main() -> None:
    ours: list[tuple[float, float, float]] = []
    peer: list[tuple[float, float, float]] = []
    interleave(ROUNDS, lambda: ours.append(_figures("agent.service")) or 0.0, lambda: peer.append(_figures(LIBRARIES)) or 0.0)
    worker: list[tuple[float, float, float]] = []
    bare: list[tuple[float, float, float]] = []
    interleave(ROUNDS, lambda: worker.append(_figures(WORKER)) or 0.0, lambda: bare.append(_figures(WORKERS_LIBRARY)) or 0.0)
    beyond = [[one - other for one, other in zip(*pair, strict=True)] for pair in zip(worker, bare, strict=True)]
    name = "its libraries alone"
    write(
        "weights",
        [
            measure("import agent.service: RSS", ours=[row[0] for row in ours], unit="MiB", target="<= 60"),
            measure("import agent.service: modules", ours=[row[1] for row in ours], unit="modules", target="<= 450"),
            compare(
                "import agent.service: RSS against libraries",
                ours=[row[0] for row in ours],
                peer=[row[0] for row in peer],
                peer_name=name,
                unit="MiB",
                target="<= 1.25",
            ),
            compare(
                "import agent.service: CPU against libraries",
                ours=[row[2] for row in ours],
                peer=[row[2] for row in peer],
                peer_name=name,
                unit="ms",
                target="<= 1.5",
            ),
            measure("import agent.inference.worker: RSS beyond numpy", ours=[row[0] for row in beyond], unit="MiB", target="<= 10"),
            measure(
                "import agent.inference.worker: modules beyond numpy", ours=[row[1] for row in beyond], unit="modules", target="<= 120"
            ),
        ],
    )
    print(f"median RSS {statistics.median(row[0] for row in ours):.1f} MiB")


if __name__ == "__main__":
    main()
