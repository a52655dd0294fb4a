"""The process's environment variables, read in this one place and handed on as a mapping."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["process_environment"]


def process_environment() -> Mapping[str, str]:
    """A copy of this process's environment variables."""
    return dict(os.environ)
