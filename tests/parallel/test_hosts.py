"""Start-up of many processes: what cannot be is said in one sentence, before anything waits for a network."""

import jax
import pytest

from localist_jax import config
from localist_jax.parallel import hosts, rules
from localist_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("everywhere", "expected auto or ADDRESS:PORT,COUNT,INDEX, got 'everywhere'"),
        ("10.0.0.1,2,0", "expected auto or ADDRESS:PORT"),
        ("10.0.0.1:8476,2,2", r"expected an index in 0 … 1, got 2"),
        ("auto", "no cluster was found here .* name it"),
    ],
)
def test_bad_hosts_are_one_sentence(text, words, monkeypatch):
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    with pytest.raises(ValueError, match=words):
        hosts.start(text)


def test_one_process_speaks_and_reads_all_of_a_batch():
    hosts.start("")
    assert hosts.is_first()
    rows = rules.batch_sharding(make_mesh(config.Mesh(), jax.devices()[:1]))
    assert hosts.share(rows, 6) == (0, 1)
