"""Start-up of many processes: errors come in one sentence, before anything waits for a network."""

import os
import subprocess
import sys

import jax
import pytest

from localist_jax import config
from localist_jax.parallel import hosts, sharding
from localist_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("everywhere", "expected auto or ADDRESS:PORT,COUNT,INDEX, got 'everywhere'"),
        ("10.0.0.1,2,0", "expected auto or ADDRESS:PORT"),
        ("10.0.0.1:8476,2,2", r"expected an index in 0 … 1, got 2"),
    ],
)
def test_bad_hosts_are_one_sentence(text, words):
    with pytest.raises(ValueError, match=words):
        hosts.start(text)


def test_where_there_is_no_cluster_it_wants_a_name():
    """Run in a child process, since this one may have initialised JAX."""
    clusters = ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri")
    environment = {name: value for name, value in os.environ.items() if name not in clusters}
    done = subprocess.run(
        [sys.executable, "-c", "from localist_jax.parallel import hosts; hosts.start('auto')"],
        env=environment | {"TPU_SKIP_MDS_QUERY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "--hosts=auto: JAX found no cluster" in done.stderr.splitlines()[-1]


def test_one_process_speaks_and_reads_all_of_a_batch():
    hosts.start("")
    assert hosts.is_first()
    rows = sharding.batch_sharding(make_mesh(config.Mesh(), jax.devices()[:1]))
    assert hosts.share(rows, 6) == (0, 1)
