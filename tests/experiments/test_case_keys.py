"""Results of studies: what they depend on is in their keys, so none is taken for another."""

from pathlib import Path

from experiments.cases import Store
from experiments.coordination_overhead import house
from experiments.coordination_overhead import measure as coordination

STORE = Store(Path("nowhere"))


def test_the_cost_of_many_llms_depends_on_their_settings(monkeypatch):
    about = (0, 64, 30, 1)
    before = STORE.key(coordination.case_of(*about))
    assert STORE.key(coordination.case_of(*about)) == before
    others = [(*about[:at], value + 1, *about[at + 1 :]) for at, value in enumerate(about)]
    assert before not in {STORE.key(coordination.case_of(*other)) for other in others}
    monkeypatch.setattr(coordination, "settings", lambda: house.settings().replace(model={"width": 64}))
    assert STORE.key(coordination.case_of(*about)) != before
