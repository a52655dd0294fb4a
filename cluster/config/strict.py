"""What every part of the configuration is made of: a strict model, a secret by its name, and the forms of names."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

__all__ = ["Name", "SecretRef", "SemVer", "Strict"]

Name = Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_]{0,62}$")]
"""A model's, route's or workflow's name: it becomes part of application names and metric labels."""
SemVer = Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]


class Strict(BaseModel):
    """Frozen; an unknown key is an error, and so is a number that is none (`.inf`, `.nan`): no time, share or limit
    can be compared with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class SecretRef(Strict):
    """A secret by the name of the variable that holds it. The value is looked up where it is used and never stored."""

    variable: str
    default: SecretStr | None = Field(default=None, exclude=True, repr=False)
