"""The list of mutants (`make mutants`) stays true to the code that it breaks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mutations.mutants import INVARIANTS, MUTANTS, Mutant

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_breaks_one_place_and_names_tests_that_exist(mutant: Mutant) -> None:
    """Its text occurs once, what it becomes is Python, and the tests that must notice are there."""
    changed = mutant.applied_to((REPOSITORY / mutant.file).read_text(encoding="utf-8"))
    compile(changed, mutant.file, "exec")
    for test in mutant.tests:
        path, _, name = test.partition("::")
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        name = name.partition("[")[0]
        assert not name or re.search(rf"def {name}\(", text), f"{path} has no test {name}"


def test_every_invariant_has_mutants() -> None:
    """No promise of the durability core goes without a proof that its tests can fail; names are told apart."""
    assert {mutant.invariant for mutant in MUTANTS} == set(INVARIANTS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_the_table_of_windows_names_real_mutants() -> None:
    """What the crash windows' table says of their guards can be run."""
    table = (REPOSITORY / "tests/simulation/test_crash_windows.py").read_text(encoding="utf-8").split('"""')[1]
    named = {name.strip() for line in table.splitlines() if line.startswith("| ") for name in
             line.rstrip("| ").rsplit("|", 1)[-1].split(",")} - {"its mutants in tests/mutations"}  # fmt: skip
    assert len(named) > 10
    assert named <= {mutant.name for mutant in MUTANTS}
