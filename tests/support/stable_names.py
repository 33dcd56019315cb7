"""The names that others build on, read from the code: a list that changes only knowingly.

    python -m tests.support.stable_names             what differs from the committed list; exit code 1 if anything does
    python -m tests.support.stable_names --update    write tests/golden/stable_names.json

Nothing here imports torch: what torch modules name is read from their source.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import json
import sys
import typing
from collections.abc import Iterable, Mapping
from datetime import date
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "stable_names.json"


def stable_names() -> dict[str, Any]:
    """Every stable name, by what it is a name of."""
    return {
        "commands": commands(),
        "exit codes": exit_codes(),
        "settings": settings(),
        "topics and events": events(),
        "dead letters": dead_letters(),
        "tables": tables(),
        "migrations": migrations(),
        "metrics": metrics(),
        "bucket": bucket(),
        "manifest": manifest(),
        "manifest reader": manifest_reader(),
        "preference pairs": preference_pairs(),
        "Triton": triton(),
        "checkpoint": checkpoint(),
        "training stages": training_stages(),
        "extras": extras(),
    }


def commands() -> dict[str, list[str]]:
    """`pigeon ...` -> its options and arguments."""
    import typer.main

    from generator import cli

    found: dict[str, list[str]] = {}

    def walk(command: Any, path: str) -> None:
        found[path] = sorted(_parameter(one) for one in command.params)
        for name, child in sorted(getattr(command, "commands", {}).items()):
            walk(child, f"{path} {name}")

    app = cli.build_app() if hasattr(cli, "build_app") else cli.app
    walk(typer.main.get_command(app), "pigeon")
    return found


def _parameter(one: Any) -> str:
    kind = one.type_descriptor.annotation if hasattr(one, "type_descriptor") else one.type  # typer 0.29; earlier ones
    choices = list(kind) if inspect.isclass(kind) and issubclass(kind, Enum) else getattr(kind, "choices", ())
    values = "=" + "|".join(str(getattr(choice, "value", choice)) for choice in choices) if choices else ""
    if one.param_type_name == "argument":
        return f"{(one.metavar or one.name).upper()}{values}{'' if one.required else ' (optional)'}"
    return "/".join([*one.opts, *one.secondary_opts]) + values + (" (required)" if one.required else "")


def exit_codes() -> dict[str, int]:
    """Error class -> exit code of the command that it ends."""
    from schemas import errors

    classes = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.PigeonError)]
    return {one.__name__: one.exit_code for one in sorted(classes, key=lambda one: (one.exit_code, one.__name__))}


def settings() -> list[str]:
    """Dotted names; where few values are allowed, these too."""
    from pydantic import BaseModel

    from schemas.settings import NOT_SETTINGS, PREFIX, Settings

    def walk(model: type[BaseModel], path: str) -> Iterable[str]:
        for name, field in model.model_fields.items():
            if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
                yield from walk(field.annotation, f"{path}{name}.")
            else:
                yield f"{path}{name}{_choices(field.annotation)}"

    return [*walk(Settings, ""), *(f"environment: {name}" for name in sorted(NOT_SETTINGS)), f"prefix: {PREFIX}"]


def _choices(annotation: Any) -> str:
    literals = [annotation, *typing.get_args(annotation)]
    values = [value for one in literals if typing.get_origin(one) is typing.Literal for value in typing.get_args(one)]
    return "=" + "|".join(map(str, values)) if values else ""


def events() -> dict[str, Any]:
    """Topic -> its event's fields, * where required."""
    from schemas import events as module

    found: dict[str, Any] = {
        topic: [f"{name}{'*' if field.is_required() else ''}{_choices(field.annotation)}" for name, field in fields]
        for topic, model in module.TOPICS.items()
        for fields in [model.model_fields.items()]
    }
    dead = [name for name in module.all_topics() if name not in module.TOPICS]
    return {**found, "compacted": sorted(module.COMPACTED), "dead letters": dead}


def dead_letters() -> dict[str, list[str]]:
    """Headers of a dead letter and the codes of its reason."""
    from consumers.write import decode
    from consumers.write.dead_letter_sender import headers_of

    record = SimpleNamespace(topic="t", partition=0, offset=0, timestamp=0, headers=[])
    poison = decode.Poison("bad_json", "", "", "")
    headers = headers_of(decode.Decoded(record, "t", None, poison, clamped=False))
    source = inspect.getsource(decode)
    codes = ["null_value", "too_large", "bad_json", "invalid", "key_mismatch", "bad_key", "refused_by_database"]
    return {
        "headers": [name for name, _ in headers],
        "reasons": [code for code in codes if source.count(f'"{code}"')],
    }


def tables() -> dict[str, list[str]]:
    """Table -> its columns with their types, its constraints and indexes."""
    from sqlalchemy.dialects import postgresql

    from schemas.tables import Base

    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    found: dict[str, list[str]] = {}
    for table in Base.metadata.sorted_tables:
        columns = [
            f"{column.name} {column.type.compile(dialect)}{'' if column.nullable else ' not null'}"
            for column in table.columns
        ]
        checks = [
            f"{constraint.name}: {constraint.sqltext}" if hasattr(constraint, "sqltext") else str(constraint.name)
            for constraint in table.constraints
        ]
        found[table.name] = [*columns, *sorted(checks), *sorted(str(index.name) for index in table.indexes)]
    return dict(sorted(found.items()))


def migrations() -> list[str]:
    """Revisions, as `alembic_version` holds them."""
    paths = sorted((ROOT / "migrations" / "versions").glob("[0-9]*.py"))
    constants = [(path.stem, _pure_assignments(path)) for path in paths]
    return [f"{stem}: {values['revision']} after {values['down_revision']}" for stem, values in constants]


def metrics() -> list[str]:
    """Prometheus: type, name, labels."""
    from tests.support.metrics import all_metrics

    return sorted(f"{one.name} {one.kind} {' '.join(one.labels)}".strip() for one in all_metrics())


def bucket() -> dict[str, str]:
    """What lies under which key."""
    import tempfile

    from generator.feedback.artifacts import upload
    from generator.feedback.snapshot import key_of
    from schemas import manifest_files as files

    created: list[str] = []
    store = SimpleNamespace(create=lambda key, *_: created.append(key))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").touch()
        _, sha256 = upload(store, "<version>", Path(folder))  # type: ignore[arg-type]
    return {
        "pointer": files.POINTER_KEY,
        "poster": files.poster_key("<sha256>"),
        "picture before composition": files.art_key("<sha256>"),
        "manifest": files.manifest_key("<date>", "<run_id>"),
        "items": files.items_key("<date>", "<run_id>"),
        "report": files.report_key("<date>", "<run_id>"),
        "snapshot": key_of("<snapshot_id>"),
        "adapter": created[0].replace(sha256[:16], "<sha256, 16 digits>"),
        **_run_ids(),
    }


def _run_ids() -> dict[str, str]:
    from generator.nightly.ledger import run_id_of
    from generator.nightly.plan import Scope

    day = date(2026, 11, 23)
    return {"run_id": run_id_of(day), "run_id of a trial": run_id_of(day, Scope(users=("ann", "bob")).name)}


def manifest() -> dict[str, Any]:
    """Parquet schemas and the pointer's keys."""
    from schemas import manifest_files as files

    ref = files.ManifestRef("", "", "", "", "", "", 0, "")
    pointer = json.loads(files.Pointer(ref, ref, 0, "").to_json())
    return {
        "version": files.MANIFEST_VERSION,
        **{
            name: [f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in schema]
            for name, schema in (("posters", files.POSTER_SCHEMA), ("items", files.ITEM_SCHEMA))
        },
        "pointer": [*pointer, *(f"previous.{name}" for name in pointer["previous"])],
    }


def manifest_reader() -> dict[str, Any]:
    """Names, fields and signatures of the reader."""
    from schemas import manifest as module

    members = {name: one for name, one in vars(module.PosterManifest).items() if not name.startswith("_")}
    methods = {
        name: "property" if isinstance(one, property) else _signature(getattr(one, "__func__", one))
        for name, one in members.items()
    }
    return {
        "names": sorted(module.__all__),
        "PosterManifest": {"__init__": _signature(module.PosterManifest), **methods},
        "PosterChoice": _signature(module.PosterChoice),
        "Source": typing.get_args(module.Source),
        "Alarm": typing.get_args(module.Alarm),
    }


def _signature(one: Any) -> str:
    return str(inspect.signature(one)).replace("'", "")


def preference_pairs() -> dict[str, list[str]]:
    """Keys of a snapshot's lines; `prompt` is also the JSON that the Triton model `pigeon` takes."""
    from generator.feedback.snapshot import decode, encode, snapshot_of
    from schemas.preferences import PreferencePair, PromptSnapshot

    prompt = PromptSnapshot(history_titles=(), history_tokens=(), title="", description="", reference_tokens=())
    pair = PreferencePair(
        pair_id="",
        user_id="",
        item_id="",
        prompt=prompt,
        alpha=0,
        seed=0,
        chosen_poster_id="",
        rejected_poster_id="",
        chosen_tokens=(1,),
        rejected_tokens=(1,),
        source="score",
        weight=1,
    )
    line = {"decided_at": "2026-11-23T00:00:00+00:00", "pair": pair.model_dump(mode="json"), "split": "train"}
    body = json.dumps(line).encode()
    snapshot: Any = decode(body, snapshot_of(body))
    written = json.loads(encode(getattr(snapshot, "examples", snapshot.pairs)))
    return {"line": _keys(written), "source": [_choices(PreferencePair.model_fields["source"].annotation)]}


def triton() -> dict[str, Any]:
    """Models with their tensors (sizes of preset nano), and what is in the repository."""
    from generator.pigeon.presets import PRESETS
    from generator.serving import repository
    from generator.serving.configs import model_specs

    models = {}
    for spec in model_specs(PRESETS["nano"](), (4, 16, 16)):
        models[spec.name] = {
            kind: [f"{t.name} {t.type} {list(t.dims)}{' optional' if t.optional else ''}" for t in tensors]
            for kind, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs))
        }
    return {
        "models": models,
        "manifest.json": sorted(repository.RepositoryManifest.model_fields),
        "parameters": [repository.BUILD_PARAMETER, repository.TOKENIZER_PARAMETER],
        "presets": sorted(PRESETS),
    }


def checkpoint() -> dict[str, list[str]]:
    """Files of a checkpoint, keys of its config.json, and nano's own files."""
    from generator.pigeon.presets import PRESETS

    source = ROOT / "generator" / "pigeon" / "checkpoint.py"
    pure = _pure_assignments(source)
    nano = ROOT / "deploy" / "models" / "nano"
    config = PRESETS["nano"]().model_dump(mode="json")
    for name in ("unet", "vae", "scheduler"):  # diffusers' arguments
        config["diffusion"][name] = None
    return {
        "weights": list(pure["WEIGHT_FILES"]),
        "other files": [*pure["PLAIN_FILES"], pure["WORDING"], "config.json"],
        "config.json": _keys(config),
        "nano": sorted(
            path.relative_to(nano).as_posix()
            for path in nano.rglob("*")
            if path.suffix in {".json", ".safetensors"} and "evaluation" not in path.relative_to(nano).parts
        ),
    }


def training_stages() -> dict[str, list[str]]:
    """`pigeon train stage NAME`, and the tools that lie beside a checkpoint."""
    path = ROOT / "generator" / "training" / "nano" / "stages" / "recipe.py"
    return {name: _dict_keys(path, name) for name in ("STAGES", "RECIPE", "TOOLS")}


def extras() -> list[str]:
    """What `pip install 'pigeon-posters[...]'` may ask for, and the command."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [project["name"], *sorted(project["optional-dependencies"]), *map(str, project["scripts"].items())]


def _keys(value: Any, path: str = "") -> list[str]:
    """Dotted names of all leaves of a JSON value."""
    if not isinstance(value, Mapping):
        return [path]
    return [leaf for key, one in value.items() for leaf in _keys(one, f"{path}.{key}" if path else key)]


def _assignments(path: Path) -> Iterable[tuple[str, ast.expr]]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and node.value is not None:
                yield target.id, node.value


def _pure_assignments(path: Path) -> dict[str, Any]:
    """A module's constants, as far as they are made of literals and earlier constants."""
    found: dict[str, Any] = {}
    for name, value in _assignments(path):
        code = compile(ast.Expression(value), str(path), "eval")
        try:
            found[name] = eval(code, {"__builtins__": {}}, found)  # noqa: S307 - our own source
        except (NameError, TypeError, AttributeError):
            continue
    return found


def _dict_keys(path: Path, wanted: str) -> list[str]:
    value = dict(_assignments(path))[wanted]
    assert isinstance(value, ast.Dict)
    return [key.value for key in value.keys if isinstance(key, ast.Constant)]


def as_text(names: Mapping[str, Any]) -> str:
    return json.dumps(names, indent=1, ensure_ascii=False) + "\n"


def difference() -> list[str]:
    """Lines of a diff from the committed list to the code; empty when they agree."""
    before = GOLDEN.read_text(encoding="utf-8").splitlines() if GOLDEN.exists() else []
    now = as_text(stable_names()).splitlines()
    return list(difflib.unified_diff(before, now, "committed", "code", lineterm="", n=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare the stable names with the committed list, or write it.")
    parser.add_argument("--update", action="store_true")
    if parser.parse_args().update:
        GOLDEN.write_text(as_text(stable_names()), encoding="utf-8")
    lines = difference()
    print("\n".join(lines) or "no stable name has changed")  # noqa: T201
    sys.exit(bool(lines))
