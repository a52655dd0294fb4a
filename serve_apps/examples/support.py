"""The support route as a Python function: it chooses as the rules of `support` in configs/dev.yaml do."""

from __future__ import annotations

__all__ = ["select_model"]


def select_model(question: str) -> str:
    """The model that answers `question`: refunds (退款), then technical questions (技术), else the front desk.

    Used by a route with `python: serve_apps.examples.support:select_model`.
    """
    if "退款" in question:
        return "finance_model"
    if "技术" in question:
        return "tech_support_model"
    return "general_model"
