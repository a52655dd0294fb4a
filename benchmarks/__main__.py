"""Runs every benchmark, or those named: `python -m benchmarks [NAME …]`. Each one is a process of its own."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    """Print each benchmark's own output below its name; 1 when one of them failed, 2 for an unknown name."""
    known = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    if "-h" in names or "--help" in names:
        print("python -m benchmarks [NAME …]: runs these, or all of them, one after another\n")
        for name in known:
            print(f"  {name:<{max(map(len, known))}}  {about(HERE / f'{name}.py')}")
        return 0
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or known:
        print(f"\n=== {name}", flush=True)
        started = time.monotonic()
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=HERE.parent, check=False).returncode
        print(f"--- {name}: {'done' if code == 0 else f'FAILED ({code})'} in {time.monotonic() - started:.0f} s")
        if code:
            failed.append(name)
    return 1 if failed else 0


def about(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
