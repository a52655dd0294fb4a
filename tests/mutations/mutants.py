"""All mutants, the log's first."""

from __future__ import annotations

from tests.mutations.engine_mutants import ENGINE_MUTANTS
from tests.mutations.log_mutants import LOG_MUTANTS
from tests.mutations.mutant import INVARIANTS, Mutant
from tests.mutations.store_mutants import STORE_MUTANTS

__all__ = ["INVARIANTS", "MUTANTS", "Mutant"]

MUTANTS: tuple[Mutant, ...] = (*LOG_MUTANTS, *ENGINE_MUTANTS, *STORE_MUTANTS)
