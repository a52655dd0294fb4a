"""The short forms of configs/*.yaml rewritten to the long one, places kept. Pure, on trees."""

from __future__ import annotations

from cluster.config.models import ModelConfig, VersionConfig
from cluster.config.source import Tree

__all__ = ["VERSION_KEYS", "expand"]

VERSION_KEYS = frozenset(field.alias or name for name, field in VersionConfig.model_fields.items()) - frozenset(
    ModelConfig.model_fields
)
"""Keys of a version that may stand at the model's level."""

_KEEP_NULLS_BELOW = frozenset({"config", "warmup", "golden", "adaptive"})


def expand(tree: Tree) -> Tree:
    """The long form of a merged configuration.

    - A key with a null is as good as absent (an environment takes back what base.yaml set), outside free-form mappings.
    - A model without `versions` has one, `1.0.0`, made of the version's keys at the model's level; beside `versions`
      those keys are the defaults of every version.
    - A model all of whose versions are `openai_compatible`, without a task, is a chat model.
    - `callable: …` or a container name as a plain text is the value of an image.
    """
    tree = _without_nulls(tree)
    if not isinstance(tree.value, dict):
        return tree
    value = dict(tree.value)
    models = value.get("models")
    if models is not None and isinstance(models.value, dict):
        value["models"] = Tree({name: _model(model) for name, model in models.value.items()}, models.mark)
    images = value.get("images")
    if images is not None and isinstance(images.value, dict):
        value["images"] = Tree({name: _image(image) for name, image in images.value.items()}, images.mark)
    return Tree(value, tree.mark)


def _without_nulls(tree: Tree) -> Tree:
    if isinstance(tree.value, dict):
        children = {
            key: child if key in _KEEP_NULLS_BELOW else _without_nulls(child)
            for key, child in tree.value.items()
            if child.value is not None
        }
        return Tree(children, tree.mark, tree.bare)
    return tree


def _model(model: Tree) -> Tree:
    if not isinstance(model.value, dict):
        return model
    own = {key: child for key, child in model.value.items() if key not in VERSION_KEYS}
    shared = {key: child for key, child in model.value.items() if key in VERSION_KEYS}
    versions = own.get("versions")
    if versions is None:
        if not shared:
            return model
        own["versions"] = Tree({"1.0.0": Tree(shared, model.mark)}, model.mark)
    elif isinstance(versions.value, dict) and shared:
        own["versions"] = Tree(
            {
                name: Tree({**shared, **version.value}, version.mark) if isinstance(version.value, dict) else version
                for name, version in versions.value.items()
            },
            versions.mark,
        )
    if "task" not in own and _providers(own.get("versions")) == {"openai_compatible"}:
        own["task"] = Tree("chat", model.mark)
    return Tree(own, model.mark)


def _providers(versions: Tree | None) -> set[str]:
    if versions is None or not isinstance(versions.value, dict):
        return set()
    found = set()
    for version in versions.value.values():
        provider = version.value.get("provider") if isinstance(version.value, dict) else None
        found.add(str(provider.value) if provider is not None else "")
    return found


def _image(image: Tree) -> Tree:
    """`local` alone, or `module:function`, or a container image's name."""
    if not isinstance(image.value, str):
        return image
    if image.value == "local":
        return Tree({"local": Tree(True, image.mark)}, image.mark)
    return Tree({"container": image}, image.mark)
