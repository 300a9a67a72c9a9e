"""The schemas of Kubernetes and of KubeRay's RayJob, put together into one check."""

import json
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from referencing import Registry, Resource

_NUMBER = r"(\+|-)?([0-9]+(\.[0-9]*)?|\.[0-9]+)"
_QUANTITY = rf"^{_NUMBER}([KMGTPE]i|[numkMGTPE]|[eE]{_NUMBER})?$"
"""How Kubernetes writes an amount; its published schema takes any text."""


def mistakes(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with a RayJob: a dotted place and what the rule is, for each mistake."""
    for error in _validator().iter_errors(manifest):
        yield ".".join(str(part) for part in error.absolute_path), error.message


@cache
def _validator() -> Draft202012Validator:
    schema = yaml.safe_load((Path(__file__).parent / "rayjob_schema.yaml").read_text())
    registry = Registry().with_resource("urn:kubernetes", Resource.from_contents(_kubernetes()))
    return Draft202012Validator(schema, registry=registry)


def _kubernetes() -> Any:
    """Kubernetes' strict definitions, which refuse unknown keys, as the package `kubernetes-validate` holds them.

    Of the release that KubeRay v1.7.0 is built with: in other ones pods have other keys.
    """
    spec = find_spec("kubernetes_validate")  # not imported: only its files are needed
    assert spec is not None and spec.origin is not None, "pip install -e '.[dev]'"
    path = Path(spec.origin).parent / "kubernetes-json-schema" / "v1.36.0-local-strict" / "_definitions.json"
    loaded = _without_null(json.loads(path.read_text()))
    amount = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": _QUANTITY}]}
    loaded["$defs"]["io.k8s.apimachinery.pkg.api.resource.Quantity"] = amount
    return {"$schema": loaded["$schema"], "$defs": loaded["$defs"]}


def _without_null(schema: Any) -> Any:
    """The same schema where a key that is written has a value: an `emptyDir:` with nothing behind it is a mistake."""
    if isinstance(schema, list):
        return [_without_null(part) for part in schema if part != "null"]
    if isinstance(schema, dict):
        return {key: _without_null(part) for key, part in schema.items()}
    return schema
