"""Compares answers in JSON with the schema of their kind in docs/schema."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCHEMAS = ROOT / "docs/schema"
KINDS: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}
# The keywords of JSON Schema that `misfits` checks. A schema with another keyword fails, since it would go unchecked.
KNOWN = {"$schema", "title", "description", "type", "required", "properties", "additionalProperties", "items"}
KNOWN |= {"enum", "const"}


def misfits(value: Any, schema: dict[str, Any], place: str = "") -> list[str]:
    """Compare a value with a schema, by the keywords of JSON Schema (draft 2020-12) in KNOWN. `place`: the path of the
    value in the whole answer. Returns a sentence for each difference."""
    assert schema.keys() <= KNOWN, schema.keys() - KNOWN
    if "const" in schema and value != schema["const"]:
        return [f"{place}: {value!r} is not {schema['const']!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{place}: {value!r} is not one of {schema['enum']}"]
    types = schema.get("type", list(KINDS))
    types = [types] if isinstance(types, str) else types
    if not any(isinstance(value, KINDS[t]) and (t == "boolean" or not isinstance(value, bool)) for t in types):
        return [f"{place}: {value!r} is no {' or '.join(types)}"]
    differences = []
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        differences += [f"{place}: lacks {key}" for key in schema.get("required", []) if key not in value]
        for key, inner in value.items():
            if key in properties:
                differences += misfits(inner, properties[key], f"{place}.{key}")
            elif others is False:
                differences.append(f"{place}: {key} is not in the schema")
            elif isinstance(others, dict):
                differences += misfits(inner, others, f"{place}.{key}")
    if isinstance(value, list) and "items" in schema:
        for i, inner in enumerate(value):
            differences += misfits(inner, schema["items"], f"{place}[{i}]")
    return differences


def checked(text: str) -> dict[str, Any]:
    """Parse a command's answer, and assert that it is one JSON object, and nothing else, which fits the schema of its
    kind."""
    answer = json.loads(text)
    schema = json.loads((SCHEMAS / f"{answer['kind']}.json").read_text())
    assert not misfits(answer, schema), misfits(answer, schema)
    return answer
