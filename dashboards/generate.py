"""Writes `dashboards/generated/` anew: `python -m dashboards.generate`. Needs grafana-foundation-sdk (extra `dev`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import yaml
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards import alerts, releases, serving, workflows
from dashboards.bundle import FOLDER, RULES

__all__ = ["files", "main"]

_BOARDS: dict[str, Callable[[], Dashboard]] = {
    "serving.json": serving.dashboard,
    "workflows.json": workflows.dashboard,
    "releases.json": releases.dashboard,
}
_HEAD = "# Made by `python -m dashboards.generate` from dashboards/alerts.py.\n"


def files() -> dict[str, str]:
    """What belongs into `dashboards/generated/`, by file name."""
    made = {name: board_text(board()) for name, board in _BOARDS.items()}
    made[RULES] = _HEAD + yaml.safe_dump(alerts.rules_file(), sort_keys=False, width=10_000, allow_unicode=True)
    return made


def board_text(board: Dashboard) -> str:
    """A dashboard's JSON, its panels numbered so that links to one of them stay good."""
    data: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    del data["style"]  # no schema of today has it
    for variable in data["templating"]["list"]:
        # What the builders write into every variable, and Grafana's schema has for variables of time only.
        for key in ("auto", "auto_count", "auto_min", "id"):
            variable.pop(key, None)
    for number, panel in enumerate(data["panels"], start=1):
        panel["id"] = number
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
