"""Results of studies: what they depend on is in their keys, so none is taken for another."""

from pathlib import Path
from types import SimpleNamespace

from experiments.cases import Store
from experiments.clinic import measure as clinic
from experiments.coordination_overhead import house
from experiments.coordination_overhead import measure as coordination
from experiments.order_and_shift import base, runs

STORE = Store(Path("nowhere"))


def test_the_cost_of_many_llms_depends_on_their_settings(monkeypatch):
    about = (0, 64, 30, 1)
    before = STORE.key(coordination.case_of(*about))
    assert STORE.key(coordination.case_of(*about)) == before
    others = [(*about[:at], value + 1, *about[at + 1 :]) for at, value in enumerate(about)]
    assert before not in {STORE.key(coordination.case_of(*other)) for other in others}
    monkeypatch.setattr(coordination, "settings", lambda: house.settings().replace(model={"width": 64}))
    assert STORE.key(coordination.case_of(*about)) != before


def test_a_clinic_depends_on_its_phases_and_settings(monkeypatch):
    def key(phases, width=32):
        return STORE.key(clinic.case_of("one", 0, width, phases))

    assert key(((4, ("a",)),)) == key([[4, ["a"]]])
    assert len({key([[4, ["a"]]]), key([[5, ["a"]]]), key([[4, ["a"]]], 36)}) == 3


def test_streams_depend_on_the_base_that_they_begin_with(monkeypatch):
    def key():
        return STORE.key(runs.case_of("abrupt", "one", 0, base.case_of(runs.WIDTH)))

    before = key()
    assert key() == before
    monkeypatch.setattr(base, "STEPS", 7)
    assert key() != before
    monkeypatch.undo()
    monkeypatch.setattr(base, "settings", lambda seed, width: clinic.settings(seed, width, steps=7))
    assert key() != before, "the base's folder is another one then, too"


def test_the_base_is_read_from_the_folder_of_its_own_settings(monkeypatch, tmp_path):
    store, read = Store(tmp_path), []
    monkeypatch.setattr(base, "read", lambda folder: read.append(folder))
    monkeypatch.setattr(base, "library", lambda: SimpleNamespace(case=lambda stream, seed: None))
    monkeypatch.setattr(runs, "_told", lambda case, chosen, start: {})
    for steps in (3, 4):
        monkeypatch.setattr(base, "STEPS", steps)
        case = runs.case_of("abrupt", "told", 0, base.case_of(runs.WIDTH))
        assert runs.measured(store, case)["sessions"] == runs.sessions("abrupt", 0)
    assert len(set(read)) == 2
