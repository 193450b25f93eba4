"""Attention on a mesh: equal results, without communication of keys."""

import json
import subprocess
import sys
from pathlib import Path


def test_eight_devices_attend_as_one_does_and_gather_nothing():
    script = Path(__file__).with_name("attend_on_eight_devices.py")
    child = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr[-3000:]
    seen = json.loads(child.stdout.splitlines()[-1])
    assert seen["devices"] == 8
    assert max(seen["gaps"]) < 1e-4
    assert seen["collectives"]["all-gather"] == 0
    assert seen["collectives"]["all-to-all"] == 0
    assert seen["collectives"]["all-reduce"] > 0  # the score, and gradients of shared inputs
