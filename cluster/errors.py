"""The one error root, and the HTTP status and retry rule of each kind of failure.

Every error that a user can meet is a `HeadraceError`: a stable `code`, a sentence that says what, where and what to
do, an HTTP status on the class, and whether the same call may succeed later. All of them survive pickling, since
they cross actors.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "Conflict",
    "CorruptObject",
    "DeadlineExceeded",
    "Fenced",
    "Forbidden",
    "FormatVersionUnsupported",
    "HeadraceError",
    "InternalError",
    "InvalidConfig",
    "InvalidInput",
    "LayoutChanged",
    "ModelError",
    "NotFound",
    "ObjectNotFound",
    "Overloaded",
    "StorageError",
    "StorageUnavailable",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "Unprocessable",
    "UnsafeBucket",
    "UpstreamError",
    "may_pass",
]


class HeadraceError(Exception):
    """Root of all errors. `details` is JSON-serialisable and goes into the problem document as it is."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, details: dict[str, Any] | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.message = message
        self.details = dict(details or {})
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.details, self.retry_after_s))

    def to_dict(self) -> dict[str, Any]:
        """`{code, message, status, retryable, details?, retry_after_s?}`, as kept in events and sent over HTTP."""
        out: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "status": self.status,
            "retryable": self.retryable,
        }
        if self.details:
            out["details"] = self.details
        if self.retry_after_s is not None:
            out["retry_after_s"] = self.retry_after_s
        return out


def _rebuild(
    cls: type[HeadraceError], message: str, details: dict[str, Any], retry_after_s: float | None
) -> HeadraceError:
    return cls(message, details=details, retry_after_s=retry_after_s)


class InvalidInput(HeadraceError):
    """The caller sent something that can never work: fix the request."""

    code = "invalid_input"
    status = 400


class InvalidConfig(InvalidInput):
    """A YAML file is wrong. `details["problems"]` lists `{file, line, key, message, suggestion}`."""

    code = "invalid_config"


class Unauthorized(HeadraceError):
    """No API key, an unknown one, or one that has expired."""

    code = "unauthorized"
    status = 401


class Forbidden(HeadraceError):
    """The API key is good but its role does not allow this call."""

    code = "forbidden"
    status = 403


class NotFound(HeadraceError):
    """No model, version, workflow or run has this name."""

    code = "not_found"
    status = 404


class Conflict(HeadraceError):
    """The request contradicts what is already recorded."""

    code = "conflict"
    status = 409


class TooLarge(HeadraceError):
    """A body, value or fan-out is over its limit."""

    code = "too_large"
    status = 413


class Unprocessable(HeadraceError):
    """Well-formed, but not acceptable (an idempotency key reused with another body, for example)."""

    code = "unprocessable"
    status = 422


class Overloaded(HeadraceError):
    """A queue is full; `retry_after_s` is computed from what stands in it."""

    code = "overloaded"
    status = 429
    retryable = True


class Unavailable(HeadraceError):
    """Nothing can answer right now (no replica, breaker open, actor restarting)."""

    code = "unavailable"
    status = 503
    retryable = True


class LayoutChanged(Unavailable):
    """The environment has another number of shards than the sender thought; `details` hold the layouts."""

    code = "layout_changed"


class UpstreamError(HeadraceError):
    """An upstream server answered with an error or not at all."""

    code = "upstream_error"
    status = 502
    retryable = True


class DeadlineExceeded(HeadraceError):
    """The caller's deadline, or the version's timeout, passed first."""

    code = "deadline_exceeded"
    status = 504


class Cancelled(HeadraceError):
    """The caller went away or asked to stop."""

    code = "cancelled"
    status = 499


class ModelError(HeadraceError):
    """The model's own code raised for this item."""

    code = "model_error"
    status = 500


class InternalError(HeadraceError):
    """A defect in headrace; the request id finds it in the logs."""


class StorageError(HeadraceError):
    """The bucket answered in a way that makes going on unsafe."""

    code = "storage_error"


class StorageUnavailable(StorageError):
    """The bucket did not answer, or answered 5xx/429: the same call may be tried again."""

    code = "storage_unavailable"
    status = 503
    retryable = True


class ObjectNotFound(StorageError):
    """No object with this key."""

    code = "object_not_found"
    status = 404


class AlreadyExists(StorageError):
    """A create-if-absent lost: the key is taken."""

    code = "already_exists"
    status = 409


class Fenced(StorageError):
    """Another owner has written a newer epoch: this process must stop and must not write again."""

    code = "fenced"


class CorruptObject(StorageError):
    """An object's bytes do not match its checksum or format. The key is in `details["key"]`."""

    code = "corrupt_object"


class FormatVersionUnsupported(StorageError):
    """The bucket was written by a format this release does not read."""

    code = "format_version_unsupported"


class UnsafeBucket(StorageError):
    """The start-up probe saw create-if-absent ignored: this bucket would lose data."""

    code = "unsafe_bucket"


def may_pass(error: StorageError) -> bool:
    """Whether waiting may cure it: a bucket that is away, a full disk, keys that were taken back. What stands in the
    bucket, and how it behaves, stays as it is."""
    return not isinstance(error, (Fenced, CorruptObject, FormatVersionUnsupported, UnsafeBucket))
