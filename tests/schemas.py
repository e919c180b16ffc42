"""Whether an answer in JSON fits the schema of its kind in docs/schema."""

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
# what the schemas use of JSON Schema; another word would be taken for checked and is not
KNOWN = {"$schema", "title", "description", "type", "required", "properties", "additionalProperties", "items"}
KNOWN |= {"enum", "const"}


def misfits(value: Any, schema: dict[str, Any], place: str = "") -> list[str]:
    """Where a value is not as a schema says, by the part of JSON Schema (draft 2020-12) in KNOWN."""
    assert schema.keys() <= KNOWN, schema.keys() - KNOWN
    if "const" in schema and value != schema["const"]:
        return [f"{place}: {value!r} is not {schema['const']!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{place}: {value!r} is not one of {schema['enum']}"]
    types = schema.get("type", list(KINDS))
    types = [types] if isinstance(types, str) else types
    if not any(isinstance(value, KINDS[t]) and (t == "boolean" or not isinstance(value, bool)) for t in types):
        return [f"{place}: {value!r} is no {' or '.join(types)}"]
    found = []
    if isinstance(value, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{place}: lacks {key}" for key in schema.get("required", []) if key not in value]
        for key, inner in value.items():
            if key in properties:
                found += misfits(inner, properties[key], f"{place}.{key}")
            elif more is False:
                found.append(f"{place}: {key} is not in the schema")
            elif isinstance(more, dict):
                found += misfits(inner, more, f"{place}.{key}")
    if isinstance(value, list) and "items" in schema:
        found += [line for i, inner in enumerate(value) for line in misfits(inner, schema["items"], f"{place}[{i}]")]
    return found


def checked(text: str) -> dict[str, Any]:
    """The answer in a text, which is one JSON value and nothing else, and fits the schema of its kind."""
    answer = json.loads(text)
    schema = json.loads((SCHEMAS / f"{answer['kind']}.json").read_text())
    assert not misfits(answer, schema), misfits(answer, schema)
    return answer
