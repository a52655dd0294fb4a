"""The shipped support route: once as rules, once as a Python function, with the same choices."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.loader import load_config
from serve_apps.examples.support import select_model
from serve_apps.router.rules import Subject, compile_route

ROOT = Path(__file__).resolve().parents[3]
CONFIG = load_config("dev", directory=ROOT / "configs", env={})
ROUTES = {
    name: compile_route(name, CONFIG.routes[name], load=lambda path: select_model)
    for name in ("support", "support_python")
}


def chosen(route: str, question: str) -> str:
    return ROUTES[route].decide(Subject(text=question), live=lambda name: None, roll=0.5).model


@pytest.mark.parametrize(
    ("question", "model"),
    [
        ("我要退款", "finance_model"),
        ("技术问题：登录报错", "tech_support_model"),
        ("退款和技术问题", "finance_model"),
        ("What are your opening hours?", "general_model"),
        ("", "general_model"),
    ],
)
@pytest.mark.parametrize("route", ["support", "support_python"])
def test_questions_go_to_their_desk(route: str, question: str, model: str) -> None:
    """Refunds go to finance, technical questions to support, all others to the front desk, by both routes."""
    assert chosen(route, question) == model


@given(st.text(alphabet="退款技术 abc?", max_size=12))
def test_rules_and_function_agree_on_any_question(question: str) -> None:
    """The YAML rules and the Python function choose the same model for every question."""
    assert chosen("support", question) == chosen("support_python", question) == select_model(question)
