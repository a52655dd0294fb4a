"""What people type on the command line, as values: `key=value`, JSON, `@file`. Reads files, nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import InvalidInput, NotFound

__all__ = ["infer_inputs", "named", "read_argument", "run_input", "upload_files"]


def run_input(given: Sequence[str], *, read_stdin: Callable[[], str]) -> Any:
    """The input of a run from `--input` values: one JSON value, `@file.json`, `-` (stdin), or any number of key=value
    whose values are YAML scalars. None when nothing was given."""
    if not given:
        return None
    if len(given) == 1 and not _is_pair(given[0]):
        text = given[0]
        if text == "-":
            text = read_stdin()
        elif text.startswith("@"):
            text = _read(text[1:]).decode(errors="replace")
        try:
            return json.loads(text)
        except ValueError as error:
            raise InvalidInput(
                f"--input {given[0]!r} is no JSON ({error}): write key=value, a JSON value, @file.json or - for stdin"
            ) from None
    return named(given, "--input")


def _is_pair(text: str) -> bool:
    key, sign, _ = text.partition("=")
    return bool(sign) and key.strip().replace("_", "").replace("-", "").replace(".", "").isalnum()


def named(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """`key=value` texts as a mapping; values are read as YAML (so that 5 is a number and [a, b] a list), `@path` is the
    text of a file. Raises InvalidInput naming the option."""
    out: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key.strip():
            raise InvalidInput(f"{option} {pair!r}: write key=value")
        out[key.strip()] = read_argument(value)
    return out


def read_argument(text: str) -> Any:
    """A YAML value, or the text of `@path`."""
    if text.startswith("@"):
        return _read(text[1:]).decode(errors="replace")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, str | int | float | bool | list | dict) else text


def upload_files(pairs: Sequence[str]) -> dict[str, Path | list[Path]]:
    """`--file name=path` texts; a name that comes more than once, or whose path is a pattern, becomes a list."""
    found: dict[str, list[Path]] = {}
    several: set[str] = set()
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.strip() or not text:
            raise InvalidInput(f"--file {pair!r}: write name=path, such as photo=cat.jpg")
        name = name.strip()
        if name.endswith("[]"):
            name = name[:-2]
            several.add(name)
        paths = [_path(text)]
        if any(sign in text for sign in "*?[") and not paths[0].exists():
            paths = sorted(Path().glob(text)) if not text.startswith("/") else sorted(Path("/").glob(text[1:]))
            several.add(name)
            if not paths:
                raise NotFound(f"--file {pair!r}: no file matches {text}")
        for path in paths:
            if not path.is_file():
                raise NotFound(f"--file {pair!r}: there is no file {path}")
        found.setdefault(name, []).extend(paths)
    return {name: paths if len(paths) > 1 or name in several else paths[0] for name, paths in found.items()}


def infer_inputs(text: str | None, pairs: Sequence[str], signature: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The inputs of one inference from a bare argument and `name=value` pairs, by the model's metadata.

    A bare argument is the value of the model's only required input (else of its first); `@path` is a file's bytes, for
    a text input its text. `signature`: the `inputs` of the model's metadata; empty for a route: its input is `prompt`.
    """
    types = {str(tensor["name"]): tensor for tensor in signature} or {"prompt": {"datatype": "BYTES"}}
    given: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            raise InvalidInput(f"--input {pair!r}: write name=value; this model's inputs: {', '.join(types)}")
        given[name.strip()] = _value(value, types.get(name.strip(), {"datatype": "JSON"}))
    if text is not None:
        required = [name for name, tensor in types.items() if not (tensor.get("parameters") or {}).get("optional")]
        target = next((name for name in (*required, *types) if name not in given), None)
        if target is None:
            raise InvalidInput(f"the input {text!r} is too much: {', '.join(given)} are given already")
        given[target] = _value(text, types[target])
    if not given:
        raise InvalidInput(f"nothing to send: give the input, or --input name=value ({', '.join(types)})")
    return given


def _value(text: str, tensor: Mapping[str, Any]) -> Any:
    kind = str(tensor.get("datatype", "BYTES"))
    as_json = (tensor.get("parameters") or {}).get("content_type") == "json" or kind == "JSON"
    if text.startswith("@"):
        data = _read(text[1:])
        if as_json:
            return _json(data.decode(errors="replace"), text)
        try:
            return data.decode() if kind == "BYTES" else _numbers(data.decode(), text, kind)
        except UnicodeDecodeError:
            return data
    if as_json:
        return _json(text, text)
    return text if kind == "BYTES" else _numbers(text, text, kind)


def _json(text: str, shown: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{shown!r} is no JSON: {error}") from None


def _numbers(text: str, shown: str, kind: str) -> Any:
    import numpy as np

    names = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}
    try:
        return np.asarray(json.loads(text), dtype=names.get(kind, kind.lower()))
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{shown!r} is no {kind} value or JSON list of them: {error}") from None


def _path(text: str) -> Path:
    # Path's own method raises for a user whom nobody knows.
    return Path(os.path.expanduser(text))


def _read(path: str) -> bytes:
    try:
        return _path(path).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
