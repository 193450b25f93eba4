"""A stream that is stopped in the middle of a trial and one that is not end the same, to the last bit."""

import dataclasses

import numpy as np
import pytest

from localist_jax.data import Tokenizer
from localist_jax.hierarchy import stream
from localist_jax.hierarchy.ensemble import Ensemble
from localist_jax.hierarchy.recruiter import FILE, MemberRecruiter
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.training.checkpoint import CheckpointError
from localist_jax.training.journal import read
from tests.hierarchy.conftest import VOCABULARY, batch_of, same

WORDS = "the liver and the heart; the dose of the drug"
HIERARCHY = {"every": 2, "start": 6, "survey": 6, "smallest": 3, "horizon": 400, "placebos": 2, "capacity": 2}


def batches(first, last):
    names = ("first", "first", "first", "second"), ("first", "second", "first", "second")
    return [batch_of(*names[i % 2], seed=4 * i) for i in range(first, last)]


@pytest.fixture(scope="module")
def streams(house_settings, base, engine, tmp_path_factory):
    """One that goes on without a stop, and one that was saved, opened and resumed after half of it."""
    folder = tmp_path_factory.mktemp("stream")
    settings = house_settings.replace(hierarchy=HIERARCHY)
    ensemble = Ensemble.create(base, 2, VOCABULARY)
    house = EnsembleRun(folder, ensemble, settings, Tokenizer.train([WORDS] * 3, VOCABULARY), engine)
    whole = MemberRecruiter(ensemble, engine, settings.hierarchy, folder / "whole", seed=1)
    for batch in batches(0, 11):
        whole.observe(batch)
    stream.save(whole, house)
    (folder / "stopped").mkdir()
    (folder / "stopped" / FILE).write_bytes((folder / "whole" / FILE).read_bytes())
    coded = [whole.observe(batch).bits for batch in batches(11, 16)]
    opened = dataclasses.replace(EnsembleRun.open(folder), engine=engine)  # that has compiled already
    resumed = stream.resume(opened, folder / "stopped")
    again = [resumed.observe(batch).bits for batch in batches(11, 16)]
    whole.close(), resumed.close()
    return folder, (whole, coded), (resumed, again)


def test_it_was_stopped_in_the_middle_of_a_trial(streams):
    _, (whole, _), (resumed, _) = streams
    assert whole.trial is not None
    assert whole.trial.opened < 11
    assert len(whole.trial.curve_bits) == len(resumed.trial.curve_bits) > 6
    assert sum(map(len, whole.trial.queues)) > 0, "documents wait for contenders"


def test_members_contenders_and_bits_are_those_of_a_stream_without_a_stop(streams):
    folder, (whole, coded), (resumed, again) = streams
    np.testing.assert_array_equal(coded, again)
    assert same(whole.ensemble.states, resumed.ensemble.states)
    np.testing.assert_array_equal(whole.ensemble.signatures, resumed.ensemble.signatures)
    for (one, about), (other, restored) in [(whole.memory(), resumed.memory())]:
        assert about == restored
        assert same(one, other)
    assert read(folder / "whole" / FILE) == read(folder / "stopped" / FILE)


def test_a_folder_without_a_stream_says_so(streams, tmp_path):
    folder, _, _ = streams
    house = EnsembleRun.open(folder)
    EnsembleRun.of(tmp_path, house.ensemble, house.settings, house.tokenizer).save(3)
    with pytest.raises(CheckpointError, match="no stream to go on with"):
        stream.resume(EnsembleRun.open(tmp_path), tmp_path)
