"""Makes `headrace/client.py`, the synchronous client, from `headrace/async_client.py`.

Run by `make format`. With `--check` it writes nothing and fails when the file is not what it would write (`make lint`).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "headrace"
SOURCE, TARGET = PACKAGE / "async_client.py", PACKAGE / "client.py"

_HEAD = '''"""The synchronous client. Made from `headrace/async_client.py` by `make format`: edit that one."""
'''
_RULES = [
    (r"\A\"\"\".*?\"\"\"\n", _HEAD),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\(await ((?:(?!await).)*?\))\)(?=[.\[])", r"\1"),  # parentheses that only `await` needed
    (r"\bawait ", ""),
    (r"\bAsync(Client|Shell|Iterator)\b", r"\1"),
    (r"Calls a headrace cluster from asyncio code\.", "Calls a headrace cluster."),
]


def made() -> str:
    """The text of `headrace/client.py`."""
    text = SOURCE.read_text(encoding="utf-8")
    for pattern, replacement in _RULES:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    # Imports are in another order now, some lines fit that did not, and some loops only pass on.
    text = _ruff("check", "--select", "I,UP028", "--fix", "--unsafe-fixes", "--quiet", text=text)
    return _ruff("format", "--quiet", text=text)


def _ruff(*arguments: str, text: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(TARGET), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """The exit status."""
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(made(), encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == made():
        return 0
    print(f"{TARGET.name} is not what {SOURCE.name} makes: run `make format`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
