"""One thing that is wrong in a YAML file: where, what, and what to write instead. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from cluster.errors import InvalidConfig

__all__ = ["Problem", "closest", "raise_for"]


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """`file` and `line` (from 1; 0: not in a file) of the key, the dotted key, what is wrong, and a hint."""

    file: str
    line: int
    key: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        key = f"{self.key}: " if self.key else ""
        hint = f" ({self.suggestion})" if self.suggestion else ""
        return f"{place}{key}{self.message}{hint}"


def closest(word: str, known: Iterable[str]) -> str | None:
    """`did you mean 'x'?` for the known word nearest to `word`, or None when nothing is near."""
    options = sorted(known)
    lowered = {option.lower(): option for option in options}
    found = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return f"did you mean {lowered[found[0]]!r}?" if found else None


def raise_for(problems: Sequence[Problem]) -> None:
    """Raise one `InvalidConfig` that carries all the problems in `details["problems"]`; nothing when there is none."""
    if not problems:
        return
    unique = sorted(set(problems))
    head = "1 problem" if len(unique) == 1 else f"{len(unique)} problems"
    text = "\n".join(f"  {problem}" for problem in unique)
    raise InvalidConfig(
        f"{head} in the configuration:\n{text}", details={"problems": [asdict(problem) for problem in unique]}
    )
