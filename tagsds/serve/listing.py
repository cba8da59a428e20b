"""A page of the API's addresses, made from its OpenAPI description."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader

BOUNDS = {
    "minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}",
    "minLength": "at least {} character(s)", "maxLength": "at most {} characters", "maxItems": "at most {} entries",
}  # fmt: skip
EXAMPLES = {"image": "KEY", "sentence": "a red circle left of a blue square"}


def listing(schema: dict[str, Any]) -> str:
    """HTML of an OpenAPI description; everything in it is escaped."""
    pages = Environment(loader=PackageLoader("tagsds"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    entries = [
        entry_of(schema, path, method, found) for path, methods in schema["paths"].items() for method, found in methods.items()
    ]
    return pages.get_template("api.html").render(title=schema["info"]["title"], summary=schema["info"]["summary"], entries=entries)


def entry_of(schema: dict[str, Any], path: str, method: str, found: dict[str, Any]) -> dict[str, Any]:
    given = [
        {"name": one["name"], "where": one["in"], "type": type_of(one["schema"]), "what": what_of(one["schema"] | one)}
        for one in found.get("parameters", ())
    ]
    asked = content_of(found.get("requestBody", {}))
    answer = content_of(found["responses"]["200"])
    body = resolved(schema, asked) if asked else {}
    example = {name: EXAMPLES[name] for name in body.get("properties", {}) if name in EXAMPLES}
    return {
        "id": found["operationId"], "method": method.upper(), "path": path, "summary": found.get("summary", ""),
        "given": given + fields_of(schema, body, "body"), "answer": fields_of(schema, resolved(schema, answer), ""),
        "answer_name": name_of(answer) if answer else "bytes of a picture",
        "curl": f"curl -H 'content-type: application/json' -d '{json.dumps(example)}' HOST{path}" if asked else f"curl HOST{path}",
    }  # fmt: skip


def content_of(part: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a body; {} where it is none."""
    return part.get("content", {}).get("application/json", {}).get("schema", {})


def resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    return schema["components"]["schemas"][name_of(part)] if "$ref" in part else part


def fields_of(schema: dict[str, Any], body: dict[str, Any], where: str) -> list[dict[str, str]]:
    """The properties of an object, and below each list of objects theirs."""
    rows = []
    for name, part in body.get("properties", {}).items():
        rows.append({"name": name, "where": where, "type": type_of(part), "what": what_of(part)})
        inner = part.get("items", part)
        if "$ref" in inner and not where:
            deeper = fields_of(schema, resolved(schema, inner), where)
            rows += [row | {"name": f"{name}{'[]' if 'items' in part else ''}.{row['name']}"} for row in deeper]
    return rows


def name_of(part: dict[str, Any]) -> str:
    return part.get("$ref", "").rpartition("/")[2] or type_of(part)


def type_of(part: dict[str, Any]) -> str:
    if "$ref" in part:
        return name_of(part)
    if "anyOf" in part:
        return " or ".join(type_of(one) for one in part["anyOf"])
    if "enum" in part:
        return ", ".join(map(str, part["enum"]))
    if part.get("type") == "array":
        return f"list of {type_of(part.get('items', {}))}"
    return str(part.get("const", part.get("type", "any")))


def what_of(part: dict[str, Any]) -> str:
    """Description, bounds and default of a value."""
    inner = next((one for one in part.get("anyOf", ()) if one.get("type") != "null"), part)
    words = [part.get("description", "")]
    words += [text.format(inner[name]) for name, text in BOUNDS.items() if name in inner]
    if "default" in part:
        words.append(f"default {json.dumps(part['default'])}")
    return "; ".join(word for word in words if word)
