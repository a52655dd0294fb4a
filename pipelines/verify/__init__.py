"""Verification of a run store's history: which invariants hold, and which records break them."""

from pipelines.verify.checker import Checker
from pipelines.verify.report import INVARIANTS, Report, Violation

__all__ = ["INVARIANTS", "Checker", "Report", "Violation"]
