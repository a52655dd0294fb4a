"""How a version is hosted: the Model protocol and the loaders of each provider."""

from serve_apps.providers.model import Answer, Model

__all__ = ["Answer", "Model"]
