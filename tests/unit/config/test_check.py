"""Checks across a configuration: names, cycles, patterns, signatures, and what each provider needs."""

from __future__ import annotations

import pytest

from cluster.config.loader import load_text
from cluster.errors import InvalidConfig

MODELS = "models:\n  alpha: {provider: python, class: 'a:B'}\n  beta: {provider: python, class: 'a:B'}\n"


def messages(text: str) -> str:
    with pytest.raises(InvalidConfig) as caught:
        load_text(text, env={})
    return "\n".join(
        f"{p['line']} {p['key']}: {p['message']} {p['suggestion']}" for p in caught.value.details["problems"]
    )


def test_an_onnx_version_may_be_a_class_alone() -> None:
    """The packaged int8 embedding brings its own weights."""
    text = "models: {m: {provider: onnx, class: 'serve_apps.hosts.packaged.embedding:MiniLMInt8'}}\n"
    assert load_text(text, env={}).models["m"].versions["1.0.0"].artifact is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MODELS + "routes: {r: {default: alhpa}}\n", "did you mean 'alpha'?"),
        (MODELS + "routes: {r: {rules: [{keyword: x, model: gamma}]}}\n", "no model 'gamma'"),
        (
            MODELS + "routes: {r: {rules: [{keyword: x, rules: [{cel: 'true', model: q}]}]}}\n",
            "rules.0.model: no model",
        ),
        (MODELS + "routes: {r: {rules: [{regex: '(', model: alpha}]}}\n", "not a regular expression"),
        ("models: {m: {provider: python, class: 'a:B', timeout_s: .inf}}\n", "finite"),
        ("models: {m: {provider: python, class: 'a:B', resources: {gpus: 1.5}}}\n", "whole ones only"),
        ("models: {m: {provider: python, class: 'a:B', release: {guard: {error_rate: .nan}}}}\n", "finite"),
        ("models: {m: {provider: python, class: 'a:B', release: {guard: {feedback: -1}}}}\n", "must be at least 0"),
        (MODELS + "routes: {r: {rules: [{regex: '(?=x)', model: alpha}]}}\n", "no look-around"),
        (MODELS + "routes: {r: {rules: [{keyword: '', model: alpha}]}}\n", "an empty keyword stands in every text"),
        (MODELS + "routes: {r: {rules: [{keyword: [], model: alpha}]}}\n", "an empty keyword"),
        (MODELS + "routes: {r: {rules: [{similar_to: [a, ' '], model: alpha}]}}\n", "at least one sentence"),
        (
            MODELS + "routes: {r: {rules: [{keyword: x, model: alpha@1.0.0}]}}\n",
            "write model: alpha and version: 1.0.0",
        ),
        (
            MODELS + "  gamma: {provider: python, class: 'a:B', fallback: [alpha@2.0.0]}\n",
            "alpha has no version '2.0.0'",
        ),
        (MODELS + "  gamma: {provider: python, class: 'a:B', fallback: [gamma@1.0.0]}\n", "its own fallback"),
        (MODELS + "routes: {r: {rules: [{cel: 'a >', model: alpha}]}}\n", "not a CEL expression"),
        (
            MODELS + "routes: {r: {rules: [{cel: 'txt == \"a\"', model: alpha}]}}\n",
            "no 'txt': a rule knows body, caller",
        ),
        (MODELS + "routes: {r: {rules: [{model: alpha}]}}\n", "exactly one condition"),
        (MODELS + "routes: {r: {rules: [{keyword: x, regex: y, model: alpha}]}}\n", "exactly one condition"),
        (MODELS + "routes: {r: {rules: [{keyword: x}]}}\n", "exactly one of `model` and nested `rules`"),
        (MODELS + "routes: {r: {}}\n", "a route needs rules"),
        (MODELS + "routes: {alpha: {default: beta}}\n", "is a model already"),
        (MODELS + "routes: {r: {default: s}, s: {default: r}}\n", "go in a circle"),
        (MODELS + "routes: {r: {default: r}}\n", "go in a circle"),
        (MODELS + "routes: {r: {python: nonsense}}\n", "module:function"),
        (MODELS + "routes: {r: {rules: [{keyword: x, model: alpha, version: 9.0.0}]}}\n", "no version '9.0.0'"),
        (MODELS + "routes: {r: {adaptive: {candidates: [alpha, nope]}}}\n", "no model 'nope'"),
        ("models: {m: {provider: python, class: 'a:B', fallback: [m]}}\n", "its own fallback"),
        ("models: {m: {provider: python, class: 'a:B', fallback: [n]}}\n", "no model 'n'"),
        (
            "models:\n  m: &m {provider: python, class: 'a:B', fallback: [n]}\n  n: {<<: *m, fallback: [m]}\n",
            "fallbacks go in a circle",
        ),
        ("models: {m: {provider: python, class: 'a:B', traffic: {2.0.0: 1}}}\n", "no version '2.0.0'"),
        ("models: {m: {provider: python, class: 'a:B', traffic: {1.0.0: 0}}}\n", "all weights are 0"),
        ("models: {m: {provider: python, class: 'a:B', traffic: {1.0.0: 101}}}\n", "0 to 100"),
        ("models: {m: {provider: python, class: 'a:B', mirror: {3.0.0: 1}}}\n", "no version '3.0.0'"),
        ("models: {m: {provider: python, class: nonsense}}\n", "module:Class"),
        ("models: {m: {provider: python}}\n", "needs `class"),
        ("models: {m: {provider: openai_compatible}}\n", "needs `endpoint`"),
        ("models: {m: {provider: openai_compatible, endpoint: 'ftp://x'}}\n", "not an http(s) URL"),
        ("models: {m: {provider: onnx}}\n", "needs `artifact`"),
        ("models: {m: {description: empty}}\n", "'versions' is missing"),
        ("models: {1m: {provider: python, class: 'a:B'}}\n", "is not a name"),
        ("models: {m: {versions: {'1.0': {provider: python, class: 'a:B'}}}}\n", "MAJOR.MINOR.PATCH"),
        ("models: {m: {provider: tensorflow, class: 'a:B'}}\n", "must be one of"),
        ("models: {m: {provider: python, class: 'a:B', resources: {memory: lots}}}\n", "not a size"),
        ("models: {m: {provider: python, class: 'a:B', timeout_s: soon}}\n", "not a duration"),
        ("models: {m: {provider: python, class: 'a:B', resources: {gpus: 1, vram_gb: 2}}}\n", "not both"),
        (
            "models: {m: {provider: python, class: 'a:B', signature: {inputs: {x: FP33}, outputs: {}}}}\n",
            "must be one of",
        ),
        ("models: {m: {provider: python, class: 'a:B', release: {steps: [50, 5]}}}\n", "steps must grow"),
        ("models: {m: {provider: python, class: 'a:B', autoscaling: {min_replicas: 3}}}\n", "more than max_replicas"),
        ("images: {i: {local: true, container: x}}\n", "exactly one of"),
        ("images: {i: {callable: nonsense}}\n", "module:function"),
    ],
)
def test_mistakes_are_found_with_their_place(text: str, expected: str) -> None:
    """Each mistake is one problem with a line and a sentence that says what to do."""
    assert expected in messages(text)


def test_a_fallback_may_name_a_version() -> None:
    """As the router takes it; a circle is found through it."""
    text = MODELS + "  gamma: {provider: python, class: 'a:B', fallback: [alpha@1.0.0, beta]}\n"
    assert load_text(text, env={}).models["gamma"].fallback == ("alpha@1.0.0", "beta")
    circle = text.replace("beta: {", "beta: {fallback: [gamma@1.0.0], ")
    assert "the fallbacks go in a circle" in messages(circle)


def test_a_new_signature_needs_a_new_major_version() -> None:
    """Two versions of one major with different signatures are refused, with the number to take."""
    text = """
models:
  m:
    provider: python
    class: a:B
    versions:
      1.0.0: {signature: {inputs: {x: FP32}, outputs: {y: FP32}}}
      1.1.0: {signature: {inputs: {x: FP64}, outputs: {y: FP32}}}
"""
    assert "call it 2.0.0" in messages(text)
    load_text(text.replace("1.1.0", "2.0.0"), env={})


def test_a_grown_signature_needs_a_new_minor_version() -> None:
    """An optional input may come with a minor version, not with a patch."""
    text = """
models:
  m:
    provider: python
    class: a:B
    versions:
      1.0.0: {signature: {inputs: {x: FP32}, outputs: {y: FP32}}}
      1.0.1: {signature: {inputs: {x: FP32, z: 'JSON?'}, outputs: {y: FP32}}}
"""
    assert "call it 1.1.0" in messages(text)
    load_text(text.replace("1.0.1", "1.1.0"), env={})


def test_short_forms_of_values() -> None:
    """Sizes, durations, tensor types and images have short forms."""
    config = load_text(
        "models:\n  m:\n    provider: python\n    class: a:B\n    resources: {memory: 2GiB}\n    timeout_s: 1m30s\n"
        "    batching: {max_queue_delay_ms: 5ms}\n    release: {step_duration: 5m}\n"
        "    signature: {inputs: {x: 'FP32[3, -1]', j: 'JSON?'}, outputs: {y: BYTES}}\n"
        "images: {a: local, 'b:1': 'registry/b:1'}\n",
        env={},
    )
    model = config.models["m"]
    version = model.versions["1.0.0"]
    assert version.resources.memory == 2 * 1024**3
    assert version.timeout_s == 90
    assert version.batching.max_queue_delay_ms == 5
    assert model.release.step_duration == 300
    assert model.signature is not None
    assert model.signature.inputs["x"].shape == (3, -1)
    assert model.signature.inputs["j"].optional
    assert config.images["a"].local is True
    assert config.images["b:1"].container == "registry/b:1"


def test_a_task_implies_a_signature() -> None:
    """A chat or embedding model that states no signature has its task's."""
    config = load_text("models: {m: {task: embedding, provider: python, class: 'a:B'}}\n", env={})
    signature = config.models["m"].signature_of("1.0.0")
    assert signature is not None
    assert list(signature.inputs) == ["text"]
