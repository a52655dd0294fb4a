"""How runs read on a terminal."""

from __future__ import annotations

import pytest

from headrace.cli.run_text import first_file, show_result
from headrace.results import Run, Step

BLOB = {"$blob": "ab", "size": 3, "media_type": "image/jpeg", "name": "a cat.jpg"}


def run_of(state: str, **raw: object) -> Run:
    step = Step(id="prepare", state=state, error={"message": "KeyError: 'name'"} if state == "FAILED" else None)
    output = raw.get("output")
    return Run(id="run-0-x", workflow="w", state=state, steps={"prepare": step}, raw=raw, output=output)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ({"postprocess": {"caption": "a cat", "thumbnail": BLOB}}, ("/postprocess/thumbnail", "a cat.jpg")),
        ({"gather": [{"a/b": 1}, {"a/b": BLOB}]}, ("/gather/1/a~1b", "a cat.jpg")),
        (BLOB, ("", "a cat.jpg")),
        ({"text": "no file", "$blob": 3}, None),
        (None, None),
    ],
)
def test_the_first_file_of_an_output_is_found_with_its_pointer(output: object, found: tuple[str, str] | None) -> None:
    """The pointer is what `headrace output RUN POINTER` takes."""
    assert first_file(output) == found


def test_a_result_with_a_file_says_how_to_save_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The command can be pasted as it stands, whatever the file's name holds."""
    show_result(run_of("SUCCESS", output={"photo": BLOB}))
    assert "headrace output run-0-x /photo -o 'a cat.jpg'" in capsys.readouterr().err


def test_a_failure_is_told_once_with_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    """The step's error stands in its own line and in no other."""
    show_result(run_of("FAILED", error="step 'prepare' failed: KeyError: 'name'"))
    text = capsys.readouterr().err
    assert text.count("KeyError") == 1
    assert "headrace logs run-0-x\n" in text
    assert "headrace resume run-0-x\n" in text
