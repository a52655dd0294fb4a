"""Every example under configs/workflows runs on a real cluster and gives what its page promises."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from headrace.results import Event, Run
from tests.environment import REPOSITORY, Environment, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

EXAMPLES = REPOSITORY / "configs" / "workflows"
DEV = """
environment: dev
images:
  dify/preprocess:1.0: {local: true}
  examples/count-words:1.0: {callable: "pipelines.examples.words:count_words"}
outbound_breaker: {consecutive_failures: 3, base_ejection_s: 2}
queues:
  background: {concurrency: 2}
models:
  text_generation:
    task: chat
    provider: python
    class: small_models:Parrot
    resources: {cpus: 0.1}
    batching: {max_batch_size: 8, max_queue_delay_ms: 5}
  image_classification:
    provider: python
    class: small_models:Sizes
    resources: {cpus: 0.1}
    signature:
      inputs: {image: BYTES}
      outputs: {label: BYTES, score: FP32, top5: JSON}
"""
MODELS = '''
"""Models that take no time to load, with the signatures of the packaged ones."""
import io
from PIL import Image

class Parrot:
    signature = {
        "inputs": {
            "prompt": {"datatype": "BYTES", "optional": True},
            "messages": {"datatype": "JSON", "optional": True},
        },
        "outputs": {"text": {"datatype": "BYTES"}},
    }

    def predict(self, items):
        return [{"text": f"{item['prompt']} (seed {item['parameters'].get('seed')})"} for item in items]

class Sizes:
    def predict(self, items):
        sizes = [Image.open(io.BytesIO(item["image"])).size for item in items]
        return [{"label": f"{w}x{h}", "score": 1.0, "top5": [f"{w}x{h}"]} for w, h in sizes]
'''


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The examples as they stand, over small models."""
    made = Environment(tmp_path_factory.mktemp("examples"), dev=DEV)
    (made.configs / "workflows").rmdir()
    (made.configs / "workflows").symlink_to(EXAMPLES)
    (made.folder / "small_models.py").write_text(MODELS)
    try:
        made.up()
        yield made
    finally:
        made.close()


def run(environment: Environment, workflow: str, input: Any = None, **options: Any) -> Run:
    """One run that must succeed."""
    ended = environment.client.run(workflow, input, timeout_s=240, **options)
    assert ended.succeeded, (ended.error, {s.id: s.error for s in ended.steps.values() if s.error})
    return ended


def photo(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side * 2), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("workflow", "value", "step", "expected"),
    [
        ("each_item", {"numbers": [3, 1, 2]}, "square", [9, 1, 4]),
        ("each_item", None, "total", 55),
        ("repeat_until", {"start": 6}, "collatz", {"value": 1, "steps": 8}),
        ("nested", None, "join", "HEAD RACE"),
        ("branches", {"amount": 5}, "decide", "5 is small"),
        ("branches", None, "decide", "120 was checked"),
        ("error_handler", None, "apologise", "sorry: nothing was charged"),
        ("error_handler", None, "survey", {"asked": False}),
        ("nested_child", {"word": "x"}, "upper", "X"),
        ("clean_up", None, "report", "work: FAILED; undo: seat 12A is free again"),
        ("clean_up", {"fail": False}, "report", "work: SUCCESS; undo: not needed"),
        ("waits", None, "look", {"ready": True}),
        ("image", {"text": "to  BE or not to be"}, "words", {"to": 2, "be": 2, "or": 1, "not": 1}),
        ("resources", None, "light", {"CPU": 0.1}),
    ],
)
def test_an_example_gives_its_result(
    environment: Environment, workflow: str, value: Any, step: str, expected: Any
) -> None:
    """The named step's output is the one that the example is about."""
    assert run(environment, workflow, value).steps[step].output == expected


def test_the_retry_example_needs_three_tries(environment: Environment) -> None:
    """Two arranged failures, then success, under one idempotency key."""
    step = run(environment, "flaky_retry").steps["fetch"]
    assert step.output["attempts"] == step.raw["attempts"] == 3


def test_the_approval_example_waits_for_a_person(environment: Environment) -> None:
    """The run stands at the approval without a worker until the signal comes."""
    client = environment.client
    started = client.submit("approval")
    until(lambda: client.get_run(started.id).steps["release"].state == "RUNNING", "the approval")
    client.signal(started.id, "release", {"approved": True})
    assert client.wait(started.id, timeout_s=240).steps["publish"].output == "published: headrace 0.1 is out"


def test_the_lock_example_gives_growing_fences(environment: Environment) -> None:
    """Runs that want one account pass one after another."""
    client = environment.client
    runs = [client.submit("queue_and_lock", {"account": "7"}) for _ in range(4)]
    ended = [client.wait(r.id, timeout_s=240) for r in runs]
    spans = sorted((r.steps["book"].raw["started_at"], r.steps["book"].raw["finished_at"]) for r in ended)
    assert all(r.succeeded for r in ended)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_the_breaker_example_parks_its_calls_and_goes_on(environment: Environment) -> None:
    """Three failures open the breaker; the other calls are parked, spend no retry, and come through when it is well."""
    script = EXAMPLES / "breaker" / "shaky_service.py"
    parked: list[Event] = []
    # (A machine that stands still while it is open may come too late to park anything: then again.)
    for _ in range(4):
        with subprocess.Popen([sys.executable, str(script), "0"], stdout=subprocess.PIPE, text=True) as service:
            try:
                assert service.stdout is not None
                url = service.stdout.readline().strip()
                ended = run(environment, "breaker", {"url": url})
            finally:
                service.kill()
        assert ended.steps["count"].output == "6 of 6 calls came through"
        told = list(environment.client.events(ended.id))
        assert all(event.data["spent"] != "busy" for event in told if event.event == "step.retrying")
        if parked := [event for event in told if event.event == "step.parked"]:
            break
    assert {event.data["key"] for event in parked} == {f"host:{url.split('/')[2]}"}


def test_the_fix_and_resume_example_repeats_nothing(environment: Environment) -> None:
    """The walk-through of its first lines: what was read is not read again, and the answer says so beforehand."""
    client, folder = environment.client, EXAMPLES / "fix_and_resume"
    failed = client.run("fix_and_resume", timeout_s=240)
    assert (failed.state, failed.steps["total"].state) == ("FAILED", "FAILED")
    asked = client.resume(failed.id, workflow=folder / "mended.yaml")
    assert asked["plan"]["kept"] == ["read"]
    assert set(asked["plan"]["again"]) == {"total", "report"}
    assert client.get_run(failed.id).state == "FAILED"
    client.resume(failed.id, workflow=folder / "mended.yaml", confirm=True)
    ended = client.wait(failed.id, timeout_s=240)
    assert ended.steps["report"].output == "the total is 12"
    assert ended.steps["read"].raw["attempts"] == 1


def test_the_http_example_asks_this_cluster(environment: Environment) -> None:
    """The step calls the router's own health page."""
    ended = run(environment, "http_call", {"url": f"http://127.0.0.1:{environment.port}/healthz"})
    assert ended.steps["status"].output == "the service answered 200"


def test_the_seed_example_repeats_itself(environment: Environment) -> None:
    """Two runs draw the same number, and the seed reaches the model."""
    first, second = (run(environment, "seeded_text").steps for _ in range(2))
    assert first["draw"].output == second["draw"].output
    assert "seed None" not in first["sentence"].output
    assert first["sentence"].output == second["sentence"].output


def test_the_image_example_captions_an_uploaded_photo(environment: Environment) -> None:
    """The file of the first page of the documentation, as people write it today."""
    ended = run(environment, "image_processing", files={"photo": ("cat.png", photo(300))})
    output = ended.steps["postprocess"].output
    assert output["photo"] == "cat.png"
    assert "128x256" in output["caption"]
    thumbnail = environment.client.output(ended.id, step="postprocess", pointer="/thumbnail")
    assert Image.open(io.BytesIO(thumbnail)).size == (128, 256)
    chosen = ended.steps["generate_caption"].raw["chosen"]
    assert (chosen["model"], chosen["version"]) == ("text_generation", "1.0.0")


def test_the_many_photos_example_keeps_their_order(environment: Environment) -> None:
    """Five photos in, five rows out, each with its own caption."""
    files = {"photos": [(f"{side}.png", photo(side)) for side in (10, 20, 30, 40, 50)]}
    ended = run(environment, "caption_photos", files=files)
    rows = ended.steps["gather"].output
    assert [row["photo"] for row in rows] == ["10.png", "20.png", "30.png", "40.png", "50.png"]
    assert [row["label"] for row in rows] == ["10x20", "20x40", "30x60", "40x80", "50x100"]
    assert all(row["label"] in row["caption"] for row in rows)


def test_a_file_that_is_no_picture_ends_the_run_with_the_scripts_own_words(environment: Environment) -> None:
    """The step's error says which file it was."""
    ended = environment.client.run("image_processing", files={"photo": ("x.png", b"no picture")}, timeout_s=240)
    assert ended.state == "FAILED"
    error = ended.steps["preprocess"].error
    assert error is not None
    assert "x.png is not a picture" in error["message"]


def test_all_examples_are_tried_here() -> None:
    """A folder without a test would be a promise that nobody keeps."""
    named = {path.parent.name for path in EXAMPLES.glob("*/workflow.yaml")}
    source = Path(__file__).read_text()
    assert {name for name in named if f'"{name}"' not in source} == set()
