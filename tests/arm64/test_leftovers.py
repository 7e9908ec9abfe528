"""What a start left is given back on arm64 as well, and the process answers as before.

Run by `make test-arm64`, as root.
"""

import json
import os

import pytest
from arm64.tree import Tree

pytestmark = pytest.mark.skipif("MOORING_TEST_ARM64" not in os.environ, reason="takes minutes, needs root; run by `make test-arm64`")

PROGRAM = """
import json
import cv2, numpy as np
import onnxruntime
from agent.leftovers import Leftovers, keep_what_repeats

def answer():
    picture = (np.arange(480 * 640 * 3, dtype=np.uint32) * 2654435761 >> 24).astype(np.uint8).reshape(480, 640, 3)
    small = cv2.resize(picture, (96, 96), interpolation=cv2.INTER_LINEAR)
    return [int(small.astype(np.int64).sum()), round(float(np.linalg.norm(np.fft.rfft(small[..., 0].ravel()))), 3)]

keep_what_repeats()
leftovers, answers, given = Leftovers(lambda: 0.0), [answer()], []
for _ in range(3):
    given.append(leftovers.give_back())
    answers.append(answer())
print(json.dumps({"answers": answers, "given": given, "providers": onnxruntime.get_available_providers()}))
"""


def test_a_process_on_arm64_answers_as_before_after_it_gave_its_leftovers_back(tree: Tree):
    said = json.loads(tree.run("/usr/bin/python3", "-c", PROGRAM, environment={"ORT_DISABLE_TELEMETRY": "1"}).splitlines()[-1])
    assert said["answers"] == [said["answers"][0]] * 4
    assert "CPUExecutionProvider" in said["providers"]
