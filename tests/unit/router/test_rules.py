"""Route rules: which model a request goes to, and why."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config.models import RouteConfig
from cluster.errors import InternalError, InvalidConfig, NotFound
from serve_apps.examples.support import select_model
from serve_apps.protocol import BARE_INPUT
from serve_apps.router.adaptive import Candidate
from serve_apps.router.rules import CompiledRoute, Hit, NeedsVectors, Subject, compile_route, question_of
from serve_apps.router.service import load_function

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def no_function(name: str) -> Callable[..., Any]:
    raise AssertionError(name)


def route(**config: Any) -> CompiledRoute:
    return compile_route("r", RouteConfig.model_validate(config), load=no_function)


def ask(compiled: CompiledRoute, text: str = "", roll: float = 0.5, **subject: Any) -> Hit:
    return compiled.decide(
        Subject(text=text, model="r", **subject),
        live=lambda model: Candidate(model=model),
        roll=roll,
        known=lambda model: model != "nobody",
    )


SUPPORT = [
    ("我要退款", "finance_model"),
    ("这个技术问题怎么解决", "tech_support_model"),
    ("退款和技术", "finance_model"),
    ("你好", "general_model"),
    ("", "general_model"),
]


@pytest.mark.parametrize(("question", "model"), SUPPORT)
def test_support_route_as_rules(question: str, model: str) -> None:
    """The support route of configs/dev.yaml sends refunds to finance, technical questions to support, the rest to the
    front."""
    config = yaml.safe_load((CONFIGS / "dev.yaml").read_text())["routes"]["support"]
    assert ask(route(**config), question).model == model


@pytest.mark.parametrize(("question", "model"), SUPPORT)
def test_support_route_as_a_function(question: str, model: str) -> None:
    """The same choice as a plain function, and as a route that calls it."""
    assert select_model(question) == model
    config = RouteConfig.model_validate({"python": "serve_apps.examples.support:select_model"})
    hit = ask(compile_route("support", config, load=load_function), question)
    assert (hit.model, hit.rule) == (model, "support:python")


def test_rules_are_tried_in_order_and_say_so() -> None:
    """The first rule that holds wins, and the reasons tell of those before it."""
    compiled = route(
        rules=[{"keyword": "a", "model": "one"}, {"name": "second", "keyword": ["b", "c"], "model": "two"}], default="d"
    )
    hit = ask(compiled, "xCx")
    assert (hit.model, hit.rule) == ("two", "second")
    assert hit.why == ("r[0]: no (no keyword)", "second: yes (the text contains 'c')")


def test_nested_rules_are_a_tree() -> None:
    """A branch is entered when its condition holds; without a match inside, the next rule is tried."""
    compiled = route(
        rules=[
            {
                "keyword": "invoice",
                "rules": [
                    {"regex": "^urgent", "model": "fast", "version": "2.0.0"},
                    {"cel": "caller == 'vip'", "model": "vip"},
                ],
            },
            {"keyword": "invoice", "model": "slow"},
        ],
        default="d",
    )
    assert ask(compiled, "urgent invoice").version == "2.0.0"
    assert ask(compiled, "invoice", caller="vip").rule == "r[0][1]"
    assert ask(compiled, "invoice").model == "slow"
    assert ask(compiled, "urgent").model == "d"


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("headers['x-tier'] == 'gold'", True),
        ("headers['x-none'] == 'gold'", False),
        ("body.parameters.max_tokens > 100", True),
        ("body.parameters.nothing > 100", False),
        ("size(text) < 10 && text.contains('refund')", True),
        ("caller in ['a', 'me'] && model == 'r'", True),
        ("text", False),
        ("1 / 0 == 1", False),
    ],
)
def test_cel_conditions(expression: str, holds: bool) -> None:
    """CEL sees body, headers, caller, text and model; what is missing or no boolean does not hold."""
    compiled = route(rules=[{"cel": expression, "model": "yes"}], default="no")
    hit = ask(
        compiled,
        "refund",
        headers={"x-tier": "gold"},
        body={"parameters": {"max_tokens": 200}},
        caller="me",
    )
    assert hit.model == ("yes" if holds else "no")


def test_a_regular_expression_cannot_run_away() -> None:
    """A pattern that takes a backtracking engine for ever is answered in linear time."""
    compiled = route(rules=[{"regex": "(a+)+$", "model": "x"}], default="d")
    started = time.process_time()
    assert ask(compiled, "a" * 50_000 + "b").model == "d"
    # A backtracking engine would need longer than the universe is old; this bound only tells the two apart.
    assert time.process_time() - started < 30


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rules": [{"regex": "(", "model": "x"}]}, r"routes.r.rules\[0\].regex"),
        ({"rules": [{"regex": r"(a)\1", "model": "x"}]}, "RE2"),
        ({"rules": [{"regex": "a" * 2000, "model": "x"}]}, "at most"),
        ({"rules": [{"cel": "1 +", "model": "x"}]}, r"routes.r.rules\[0\].cel"),
        ({"rules": [{"cel": "true || " * 1000 + "true", "model": "x"}]}, "at most"),
        ({"rules": [{"keyword": "a", "rules": [{"regex": "[", "model": "x"}]}]}, r"rules\[0\].rules\[0\].regex"),
        ({"adaptive": {"candidates": []}}, "candidates"),
        ({"adaptive": {"candidates": ["a"], "explore": 0.9}}, "explore"),
        ({"adaptive": {"candidates": ["a"], "latencyy": 1}}, "latencyy"),
        ({"adaptive": {"candidates": ["a"], "cost": "low"}}, "cost"),
        ({"adaptive": {"candidates": ["a"], "min_samples": float("inf")}}, "min_samples"),
        ({"adaptive": {"candidates": ["a"], "explore": float("nan")}}, "explore"),
        ({"rules": [{"similar_to": [], "model": "x"}]}, "at least one example"),
    ],
)
def test_what_cannot_work_is_an_early_error(config: dict[str, Any], words: str) -> None:
    """A rule that cannot work is refused when the table is made, with its place."""
    with pytest.raises(InvalidConfig, match=words):
        route(**config)


@pytest.mark.parametrize("name", ["nowhere:f", "serve_apps.examples.support:nothing", "no_colon", "os:name"])
def test_a_function_that_cannot_be_loaded(name: str) -> None:
    """A python function that is not there is an early error that names it."""
    with pytest.raises(InvalidConfig, match=r"routes\.r\.python"):
        compile_route("r", RouteConfig.model_validate({"python": name}), load=load_function)


def failing(text: str) -> str:
    raise KeyError(text)


def leaving(text: str) -> str:
    raise SystemExit(text)


@pytest.mark.parametrize("function", [failing, leaving, lambda text: 7, lambda text: "", lambda text: "nobody"])
def test_a_function_that_fails_leaves_the_default(function: Callable[[str], Any]) -> None:
    """A python function that raises, ends the process or returns what is no model gives the default, with the story;
    without one it is an error."""
    load: Callable[[str], Callable[..., Any]] = lambda name: function  # noqa: E731
    config = RouteConfig.model_validate({"python": "m:f", "default": "d"})
    hit = ask(compile_route("r", config, load=load))
    assert (hit.model, hit.rule) == ("d", "r:default")
    assert "m:f failed" in hit.why[0]
    bare = compile_route("r", RouteConfig.model_validate({"python": "m:f"}), load=load)
    with pytest.raises(InternalError, match="m:f failed"):
        ask(bare)


async def slowly(text: str) -> str:
    return text


def test_a_function_chooses_a_version_too_and_is_not_async() -> None:
    """`model@version` pins the version; a function that would have to be awaited is refused when the table is made."""
    config = RouteConfig.model_validate({"python": "m:f"})
    hit = ask(compile_route("r", config, load=lambda name: lambda text: "m@2.0.0"))
    assert (hit.model, hit.version) == ("m", "2.0.0")
    with pytest.raises(InvalidConfig, match=r"'m:f' is async"):
        compile_route("r", config, load=lambda name: slowly)


def test_examples_whose_vectors_do_not_fit_together_hold_for_nobody() -> None:
    """As after a change of the embedding model in the middle of it: the rule does not hold, and says so."""
    compiled = route(rules=[{"similar_to": ["a", "b"], "model": "m"}], default="d")
    hit = ask(compiled, "q", vectors={"a": [1.0], "b": [1.0, 0.0], "q": [1.0]})
    assert (hit.model, "has changed" in hit.why[0]) == ("d", True)


def test_no_rule_and_no_default() -> None:
    """Without a default a request that no rule takes is a 404 that tells why."""
    with pytest.raises(NotFound) as caught:
        ask(route(rules=[{"keyword": "a", "model": "x"}]), "b")
    assert caught.value.details["why"] == ["r[0]: no (no keyword)"]


def test_similarity_asks_for_embeddings_and_then_decides() -> None:
    """A semantic rule names the texts it needs; with their vectors the best cosine decides against the threshold."""
    compiled = route(rules=[{"similar_to": ["refund", "money back"], "threshold": 0.8, "model": "m"}], default="d")
    with pytest.raises(NeedsVectors) as caught:
        ask(compiled, "I want my money")
    assert caught.value.texts == ("refund", "money back", "I want my money")
    vectors = {"refund": (1.0, 0.0), "money back": (0.6, 0.8), "I want my money": (1.2, 1.6), "hello": (0.0, -1.0)}
    hit = ask(compiled, "I want my money", vectors=vectors)
    assert hit.model == "m"
    assert "1.00 like 'money back'" in hit.why[0]
    assert ask(compiled, "hello", vectors={"hello": vectors["hello"]}).model == "d"


def test_a_vector_of_another_length_is_like_nothing() -> None:
    """While the embedding model changes, a question of the new one is not compared with examples of the old one."""
    compiled = route(rules=[{"similar_to": ["refund"], "model": "a"}], default="d")
    assert ask(compiled, "x", vectors={"refund": (1.0, 0.0), "x": (1.0, 0.0)}).model == "a"
    hit = ask(compiled, "y", vectors={"y": (1.0, 0.0, 0.0)})
    assert (hit.model, "another length" in hit.why[0]) == ("d", True)


def test_without_embeddings_a_semantic_rule_does_not_hold() -> None:
    """When no embedding is to be had the rule does not hold, and the reasons say so."""
    compiled = route(rules=[{"similar_to": ["refund"], "model": "m"}], default="d")
    hit = ask(compiled, "x", vectors_failed="no embedding: the model is down")
    assert hit.model == "d"
    assert "the model is down" in hit.why[0]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"prompt": ["a", "b"]}, "a\nb"),
        ({"text": [b"bytes"]}, "bytes"),
        ({"messages": [[{"role": "user", "content": "old"}, {"role": "assistant", "content": "x"}]]}, "old"),
        ({"messages": [[{"role": "user", "content": "old"}, {"role": "user", "content": "new"}]]}, "new"),
        ({"messages": [[{"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "image"}]}]]}, "part"),
        ({"messages": ["nonsense", [7]]}, ""),
        ({"other": ["found"]}, "found"),
        ({"x": [1.0]}, ""),
        ({}, ""),
        ({BARE_INPUT: ["bare"]}, "bare"),
        ({BARE_INPUT: [{"prompt": "inner"}]}, "inner"),
    ],
)
def test_what_a_request_is_about(inputs: dict[str, Any], text: str) -> None:
    """The question is the last user message, the prompt, or the first text input; anything else is no text."""
    assert question_of(inputs) == text


@pytest.mark.parametrize("inputs", [{"text": ["a\ud800b"]}, {BARE_INPUT: [{"prompt": "a\udc00b"}]}])
def test_a_text_that_is_no_unicode_is_read_with_a_mark_in_it(inputs: dict[str, Any]) -> None:
    """Regular expressions and embeddings could not read it: a call inside the cluster may hold anything."""
    assert question_of(inputs) == "a?b"
    compiled = route(rules=[{"regex": "a.b", "model": "m"}], default="d")
    assert ask(compiled, question_of(inputs)).model == "m"
