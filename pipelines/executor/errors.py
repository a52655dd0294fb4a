"""How a step can fail: the codes that users see in a run's history and may name under `retry.non_retryable`."""

from __future__ import annotations

from cluster.errors import HeadraceError, InvalidInput, TooLarge

__all__ = [
    "ImageUnavailable",
    "OutputTooLarge",
    "ResourcesImpossible",
    "ResultNotSerialisable",
    "ScriptNotFound",
    "StepError",
    "StepExited",
    "StepTimeout",
    "WorkerDied",
]


class StepError(HeadraceError):
    """The script raised. `details` holds `type`, `traceback` (from the script's first frame on), `script`, `line`."""

    code = "step_error"
    retryable = True


class StepExited(HeadraceError):
    """The script called `exit()` instead of returning; `details["exit_code"]` is what it gave."""

    code = "step_exited"
    retryable = True


class StepTimeout(HeadraceError):
    """The attempt ran longer than its `timeout`."""

    code = "step_timeout"
    status = 504
    retryable = True


class WorkerDied(HeadraceError):
    """The worker process ended under the step: killed, out of memory, `os._exit`, or its node went away."""

    code = "worker_died"
    status = 503
    retryable = True


class ResultNotSerialisable(HeadraceError):
    """`main` returned something that JSON cannot hold; the message names the place and the type."""

    code = "result_not_serialisable"


class OutputTooLarge(TooLarge):
    """`main` returned more than `limits.max_output_mb`: save large data with `context.save()`."""

    code = "output_too_large"


class ScriptNotFound(InvalidInput):
    """The step's script or its function is not in the workflow's folder."""

    code = "script_not_found"


class ImageUnavailable(InvalidInput):
    """The step's `image` means nothing on this cluster."""

    code = "image_unavailable"


class ResourcesImpossible(HeadraceError):
    """No node of the cluster is large enough for the step's `resources`."""

    code = "resources_impossible"
    status = 503
    retryable = True
