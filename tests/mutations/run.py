"""Breaks the guards of the durability core one at a time, in a copy of the tree, and says which tests notice.

    make mutants                       every mutant
    python -m tests.mutations.run stale-fence key-not-logged

A mutant that its tests do not notice is a promise that nothing holds: the exit code is 1 and its name is printed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.mutations.mutants import MUTANTS, Mutant

REPOSITORY = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".venv", ".git", ".headrace", "__pycache__", ".*_cache", ".hypothesis", "shared")
LIMIT_S = 120
"""A test that takes this long hangs: a broken guard may leave a run waiting for ever, which is noticed too."""
CAUGHT, SURVIVED = 1, 0
"""pytest's exit codes for "a test failed" and "all passed"."""


def copy_tree(target: Path) -> None:
    """Everything but what is built or kept locally."""
    shutil.copytree(REPOSITORY, target, ignore=LEFT_OUT, symlinks=True)


def run_tests(tree: Path, tests: Iterable[str]) -> tuple[int, str]:
    """pytest's exit code and what it printed, stopping at the first failure."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--timeout={LIMIT_S}", *tests],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "HYPOTHESIS_PROFILE": "mutants"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def write_source(path: Path, text: str) -> None:
    """Write a module so that no compiled form of the text before it is used: their times may be the same."""
    path.write_text(text, encoding="utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def try_mutant(tree: Path, mutant: Mutant) -> tuple[int, str]:
    """Break one guard in the copy, run the tests that must notice, and mend it again."""
    path = tree / mutant.file
    whole = path.read_text(encoding="utf-8")
    write_source(path, mutant.applied_to(whole))
    try:
        return run_tests(tree, mutant.tests)
    finally:
        write_source(path, whole)


def main(names: list[str]) -> int:
    """Try the named mutants, or all; the process's exit code."""
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        print(f"there is no mutant {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with tempfile.TemporaryDirectory(prefix="headrace-mutants-") as folder:
        tree = Path(folder) / "tree"
        copy_tree(tree)
        code, said = run_tests(tree, sorted({test for mutant in chosen for test in mutant.tests}))
        if code != SURVIVED:
            print(f"the tests fail without any mutant:\n{said}", file=sys.stderr)
            return 2
        survivors: list[str] = []
        for mutant in chosen:
            began = time.monotonic()
            code, said = try_mutant(tree, mutant)
            if code not in (CAUGHT, SURVIVED):
                print(f"{mutant.name}: the tests did not run:\n{said}", file=sys.stderr)
                return 2
            if code == SURVIVED:
                survivors.append(mutant.name)
            verdict = "caught" if code == CAUGHT else "SURVIVED"
            failed = next((line for line in said.splitlines() if line.startswith("FAILED ")), "FAILED ")
            print(f"{verdict:<8} {time.monotonic() - began:5.1f} s  {mutant.invariant:<20} {mutant.name:<28} "
                  f"{failed.removeprefix('FAILED ').split(' - ')[0]}", flush=True)  # fmt: skip
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught" + "".join(f"\n  {n}" for n in survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
