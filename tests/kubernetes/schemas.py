"""JSON schemas for kubeconform, from what Kubernetes, KEDA and prometheus-operator publish in their Go modules.

kubeconform would download ready ones. These are of exactly the versions that `versions.py` names: Kubernetes' own OpenAPI file,
and the definitions of custom resources. Strict: a field that is not in the schema is refused at every depth.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.infrastructure.tools import module_folder
from tests.infrastructure.versions import KUBERNETES
from tests.kubernetes.crds import DEFINITIONS, definition_file

# For kubeconform's -schema-location: the names that `write` gives. Where there is no group it takes the version for one.
LOCATION = "{{.Group}}_{{.ResourceAPIVersion}}_{{.ResourceKind}}.json"

_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
# Both are written as numbers, too; OpenAPI 2 can only say `string`.
_STRING_OR_NUMBER = ("io.k8s.apimachinery.pkg.api.resource.Quantity", "io.k8s.apimachinery.pkg.util.intstr.IntOrString")

Schema = dict[str, Any]


def write(folder: Path) -> bool:
    """One file a kind, of all of Kubernetes' and of the custom ones that the chart uses; False where a module cannot be had."""
    kubernetes = module_folder(f"k8s.io/kubernetes@{KUBERNETES}")
    files = [definition_file(kind) for kind in DEFINITIONS]
    if kubernetes is None or None in files:
        return False
    text = (kubernetes / "api" / "openapi-spec" / "swagger.json").read_text(encoding="utf-8")
    definitions: dict[str, Schema] = json.loads(text)["definitions"]
    definitions |= {name: {"type": ["string", "number"]} for name in _STRING_OR_NUMBER}
    for file in files:
        if file is not None:
            definitions |= _custom(yaml.safe_load(file.read_text(encoding="utf-8"))["spec"])
    definitions = {name: _strict(schema) for name, schema in definitions.items()}
    (folder / "definitions.json").write_text(json.dumps({"definitions": definitions}), encoding="utf-8")
    for name, schema in definitions.items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            path = folder / f"{kind['group'] or kind['version']}_{kind['version']}_{kind['kind'].lower()}.json"
            path.write_text(json.dumps({"$ref": f"definitions.json#/definitions/{name}"}), encoding="utf-8")
    return True


def _custom(spec: dict[str, Any]) -> dict[str, Schema]:
    """The schema of each version of a custom resource, as Kubernetes' file has its own."""
    found = {}
    for version in spec["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        schema["properties"]["metadata"] = {"$ref": f"#/definitions/{_META}"}
        of = {"group": spec["group"], "version": version["name"], "kind": spec["names"]["kind"]}
        found[".".join(of.values())] = {**schema, "x-kubernetes-group-version-kind": [of]}
    return found


def _strict(node: Any) -> Any:
    """With `additionalProperties: false` wherever properties are named and others are not allowed outright."""
    if isinstance(node, list):
        return [_strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _strict(value) for key, value in node.items()}
    is_schema = isinstance(node.get("properties"), dict) and node.get("type") == "object"
    if is_schema and not node.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed
