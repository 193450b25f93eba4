"""`python -m experiments` lists what can be run."""

import importlib.util

from experiments import __main__ as listing


def test_every_program_is_listed_with_a_line_and_can_be_found(capsys):
    found = listing.programs()
    assert {"launch", "localise", "quickstart", "clinic"} <= found.keys()
    assert "pool" not in found
    assert all(line.endswith((".", "?", "`")) for line in found.values()), found
    assert all(importlib.util.find_spec(f"experiments.{name}") for name in found)
    listing.main()
    assert len(capsys.readouterr().out.splitlines()) == len(found) + 2
