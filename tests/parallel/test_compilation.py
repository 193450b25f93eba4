"""The persistent compilation cache: on by default, in the folder that the user names."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import jax
from localist_jax.parallel.compilation import keep_programs
keep_programs()
print(jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache)
"""


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "{home}/.cache/localist_jax/programs/"),
        ({"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/localist_jax/programs/"),
        ({"JAX_COMPILATION_CACHE_DIR": "/mine"}, "/mine True"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, " False"),
    ],
)
def test_programs_are_kept_where_they_should(environment, words, tmp_path):
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=120,
        env={**inherited, "HOME": str(tmp_path), **environment},
    )
    assert words.format(home=tmp_path) in done.stdout, done.stderr
