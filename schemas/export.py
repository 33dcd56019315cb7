"""The events' JSON Schemas as files (schemas/jsonschema/), for producers in other languages."""

from __future__ import annotations

import json
from pathlib import Path

from schemas.events import TOPICS

FOLDER = Path(__file__).parent / "jsonschema"


def documents() -> dict[str, str]:
    """File name -> text, one per topic."""
    found = {}
    for topic, model in TOPICS.items():
        schema = model.model_json_schema()
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"{topic}.json", **schema}
        found[f"{topic}.json"] = json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return found


def export(folder: Path = FOLDER) -> list[str]:
    """Write the files that differ; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = drift(folder)
    for name in changed:
        text = documents().get(name)
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text, encoding="utf-8")
    return changed


def drift(folder: Path = FOLDER) -> list[str]:
    """Names of files that are missing, differ from the models, or belong to no topic."""
    wanted = documents()
    present = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
