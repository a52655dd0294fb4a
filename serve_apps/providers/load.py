"""Makes the model of a version: finds its class and calls its constructor with what it asks for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.config.models import Signature, VersionConfig
from cluster.errors import HeadraceError, InvalidConfig, ModelError

__all__ = ["Surroundings", "class_signature", "import_class", "load_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the node and the environment give to a model. `config` is the version's own, secrets already in it."""

    model: str
    task: str
    config: Mapping[str, Any]
    cache: Path
    device: str = "cpu"
    cpu_threads: int | None = None
    api_key: str | None = None
    artifact: Path | None = None


def import_class(path: str) -> Any:
    """The object at `module:Name`. Raises `InvalidConfig` that says which part is not there."""
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise InvalidConfig(f"class {path!r} must be written module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise InvalidConfig(
                f"class {path!r}: there is no module {error.name!r} on this node; ship it with the working directory, "
                "or install it"
            ) from None
        raise InvalidConfig(f"class {path!r}: importing {module_name} needs {error.name!r}, not installed") from None
    except (Exception, SystemExit) as error:
        raise InvalidConfig(f"class {path!r}: importing {module_name} failed: {_brief(error)}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InvalidConfig(f"class {path!r}: module {module_name} has no {name!r}")
        found = getattr(found, part)
    if not inspect.isclass(found) and not inspect.isfunction(found):
        raise InvalidConfig(f"class {path!r} is a {type(found).__name__}, not a class")
    return found


def class_signature(holder: Any) -> Signature | None:
    """The `signature` of a model or its class (a `Signature` or a dict of one); None when it has none."""
    given = getattr(holder, "signature", None)
    if given is None or isinstance(given, Signature):
        return given
    if isinstance(given, Mapping):
        try:
            return Signature.model_validate(given)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise InvalidConfig(f"the signature of {_name(holder)} is wrong at {where}: {problem['msg']}") from None
    return None


def load_model(version: VersionConfig, around: Surroundings) -> Any:
    """The loaded model. Blocks (minutes for large weights): call it in a thread.

    Raises `InvalidConfig` for what the configuration gets wrong and `ModelError` when the model's own constructor
    raises.
    """
    if version.provider == "openai_compatible":
        return _openai(version, around)
    if version.model_class is None:
        if version.provider == "onnx":
            from serve_apps.providers.onnx import OnnxModel

            return _construct(OnnxModel, version, around)
        raise InvalidConfig(f"provider {version.provider!r} needs `class: module:Class`")
    found = import_class(version.model_class)
    if version.provider == "torch":
        from serve_apps.providers.torch import TorchModel, is_module

        if is_module(found):
            return _construct(_module_factory(TorchModel, found, version), version, around)
    model = _construct(found, version, around)
    if not callable(getattr(model, "predict", None)):
        raise InvalidConfig(f"{_name(found)} has no method `predict(items)`: see docs/models.md for what a model needs")
    return model


def _openai(version: VersionConfig, around: Surroundings) -> Any:
    from serve_apps.providers.openai import OpenAICompatible

    if not version.endpoint:
        raise InvalidConfig("provider 'openai_compatible' needs `endpoint:`")
    return OpenAICompatible(
        endpoint=version.endpoint,
        model=version.upstream_model or around.model,
        api_key=around.api_key,
        task=around.task,
        timeout_s=version.timeout_s,
        **around.config,
    )


def _module_factory(wrapper: Any, module: Any, version: VersionConfig) -> Callable[..., Any]:
    def build(
        *,
        artifact: Path | None,
        device: str,
        precision: str,
        channels_last: bool = False,
        jit: bool = False,
        **config: Any,
    ) -> Any:
        return wrapper(
            module(**config),
            artifact=artifact,
            device=device,
            precision=precision,
            signature=version.signature or class_signature(module),
            channels_last=channels_last,
            jit=jit,
        )

    return build


def _construct(factory: Any, version: VersionConfig, around: Surroundings) -> Any:
    """Call with `config` and with those of the offered values that the parameters name."""
    offered = {
        "artifact": around.artifact,
        "precision": version.precision,
        "device": around.device,
        "seed": version.seed,
        "cpu_threads": around.cpu_threads,
        "cache": around.cache,
    }
    parameters = inspect.signature(factory).parameters
    keywords = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [key for key in around.config if key not in parameters and not keywords]
    if unknown:
        takes = [key for key in parameters if key not in offered and key != "self"]
        raise InvalidConfig(
            f"config: {_name(factory)} takes no {unknown[0]!r} (it takes: {', '.join(takes) or 'nothing'})"
        )
    arguments = {key: value for key, value in offered.items() if key in parameters} | dict(around.config)
    if version.precision != "fp32" and "precision" not in parameters:
        raise InvalidConfig(f"precision {version.precision!r} is set, but {_name(factory)} takes no `precision`")
    if around.artifact is not None and "artifact" not in parameters:
        raise InvalidConfig(f"an artifact is set, but {_name(factory)} takes no `artifact`")
    missing = [
        key
        for key, p in parameters.items()
        if p.default is p.empty and key not in arguments and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if missing:
        raise InvalidConfig(f"config: {_name(factory)} needs {missing[0]!r}, which is not set")
    try:
        return factory(**arguments)
    except HeadraceError:
        raise
    except SystemExit as error:
        raise ModelError(f"{_name(factory)} could not be loaded: it called exit({error.code})") from error
    except Exception as error:
        raise ModelError(f"{_name(factory)} could not be loaded: {_brief(error)}") from error


def _name(holder: Any) -> str:
    kind = holder if inspect.isclass(holder) or inspect.isfunction(holder) else type(holder)
    return str(getattr(kind, "__qualname__", kind))


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
