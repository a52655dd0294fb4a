"""Makes the synchronous client (`headrace/client.py`, `operators.py`) from `async_client.py` and `async_operators.py`.

Run by `make format`. With `--check` it writes nothing and fails when a file is not what it would write (`make lint`).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "headrace"
_MADE = {
    "async_client.py": ("client.py", "The synchronous client."),
    "async_operators.py": ("operators.py", "Operators' calls that block."),
}
"""By source: the file that is made from it, and how its first line begins."""

_RULES = [
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\(await ((?:(?!await).)*?\))\)(?=[.\[])", r"\1"),  # parentheses that only `await` needed
    (r"\bawait ", ""),
    (r"\bAsync(Client|Operators|Shell|Iterator)\b", r"\1"),
    (r"\basync_operators\b", "operators"),
    (r"Calls a headrace cluster from asyncio code\.", "Calls a headrace cluster."),
]


def made(source: str) -> str:
    """The text of the file that is made from `headrace/<source>`."""
    target, title = _MADE[source]
    text = (PACKAGE / source).read_text(encoding="utf-8")
    for pattern, replacement in _RULES:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    head = f'"""{title} Made from `headrace/{source}` by `make format`: edit that one."""'
    text = re.sub(r'\A""".*?"""', head, text, flags=re.DOTALL)
    # Imports are in another order now, some lines fit that did not, and some loops only pass on.
    text = _ruff("check", "--select", "I,UP028", "--fix", "--unsafe-fixes", "--quiet", text=text, target=target)
    return _ruff("format", "--quiet", text=text, target=target)


def _ruff(*arguments: str, text: str, target: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(PACKAGE / target), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """The exit status."""
    status = 0
    for source, (name, _) in _MADE.items():
        target = PACKAGE / name
        if "--check" not in sys.argv[1:]:
            target.write_text(made(source), encoding="utf-8")
        elif not target.exists() or target.read_text(encoding="utf-8") != made(source):
            print(f"{name} is not what {source} makes: run `make format`", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
