"""Adopting holds the model and less than one of its tensors: measured, and against a twin that reads whole tensors."""

import json
import subprocess
import sys

import peak_memory
import pytest

from localist_jax.adopt import shards


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("strip", "fits"), [(shards.STRIP_BYTES, True), (1 << 40, False)])
def test_never_more_than_one_tensor_above_the_model(tmp_path, strip, fits):
    folder = peak_memory.large_checkpoint(tmp_path / "large")
    child = [sys.executable, peak_memory.__file__, str(folder), str(strip)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    above = found["peak_bytes"] - found["model_bytes"]
    assert above > 0  # what the process had before was not taken for the model's
    assert (above <= found["largest_tensor_bytes"]) == fits, found
