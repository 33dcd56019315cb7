"""The tree of rooms: what each package holds, what its map names, and who imports it.

python -m tests.support.rooms    how many direct children each package has, and the circles
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PARTS = ("schemas", "consumers", "generator", "migrations", "deploy")
NAME = r"[a-z_0-9]+(?:/[a-z_0-9]+)?/?"
MAP_LINE = re.compile(rf"^ {{4}}({NAME}(?:, {NAME})*)(?: \(({NAME}(?:, {NAME})*)\))?(?: {{2,}}\S|$)")
ALSO_OTHERS = {"pigeon", "personalizer"}
"""Names of modules that are also a command's or a Triton model's."""
BACKTICKED = re.compile(r"`([A-Za-z_0-9.]+)`")


@cache
def packages() -> dict[str, Path]:
    """Dotted name -> folder, of every package of the project."""
    found = [path.parent for part in PARTS for path in (ROOT / part).rglob("__init__.py")]
    return {".".join(folder.relative_to(ROOT).parts): folder for folder in sorted(found)}


def children(package: str) -> set[str]:
    """Modules and packages directly in a package, without the package's own file."""
    folder = packages()[package]
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    return modules | {path.parent.name for path in folder.glob("*/__init__.py")}


def docstring(package: str) -> str:
    """A package's docstring, empty when it has none."""
    return ast.get_docstring(ast.parse((packages()[package] / "__init__.py").read_text(encoding="utf-8"))) or ""


def map_names(package: str) -> list[str]:
    """Names in a package's map: `module` or `room/module`, where the room is said once a line."""
    found: list[str] = []
    for line in docstring(package).splitlines():
        match = MAP_LINE.match(line)
        room = ""
        for name in [name for group in match.groups() if group for name in group.split(", ")] if match else ():
            room = name.rpartition("/")[0] if "/" in name.rstrip("/") else room
            found.append(f"{room}/{name}" if room and "/" not in name else name.rstrip("/"))
    return found


def unknown(package: str) -> list[str]:
    """Names in a package's docstring that are none: of its map, of the project, or modules of other rooms."""
    own = [name for name in map_names(package) if not _source(f"{package}.{name.replace('/', '.')}").is_file()]
    cited = [
        word for word in BACKTICKED.findall(docstring(package)) if word.split(".")[0] in PARTS and not exists(word)
    ]
    return own + cited + strangers(package)


def named(package: str) -> set[str]:
    """Modules named in a package's map, between backticks, or in the map of the package around it."""
    around, _, room = package.rpartition(".")
    words = [word.removeprefix(f"{package}.") for word in BACKTICKED.findall(docstring(package))]
    above = [
        name.removeprefix(f"{room}/") for name in (map_names(around) if around else ()) if name.startswith(f"{room}/")
    ]
    return {*above, *(name.split("/")[0] for name in map_names(package)), *(word.split(".")[0] for word in words)}


def strangers(package: str) -> list[str]:
    """Bare names between backticks that are modules elsewhere, and neither here nor near."""
    near = {child for around in packages() if package.startswith(around) for child in children(around)}
    elsewhere = {child for other in packages() for child in children(other)} - near - ALSO_OTHERS
    return [word for word in BACKTICKED.findall(docstring(package)) if word in elsewhere]


def _source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module's source names."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        source = _source(".".join(parts[:length]))
        if source.is_file():
            rest = parts[length:]
            return not rest or re.search(rf"\b{rest[0]}\b", source.read_text(encoding="utf-8")) is not None
    return False


@cache
def _inside_functions(module: str) -> list[range]:
    tree = ast.parse(_source(module).read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in nodes]


@cache
def imports_at_import_time() -> dict[str, set[str]]:
    """Module -> modules imported with it; what its functions import when they run is left out."""
    graph = grimp.build_graph(*PARTS, exclude_type_checking_imports=True, cache_dir=None)
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        lazy = _inside_functions(module)
        found[module] = {
            other
            for other in graph.find_modules_directly_imported_by(module)
            for one in graph.get_import_details(importer=module, imported=other)
            if not any(one["line_number"] in lines for lines in lazy)
        }
    return found


def between_rooms(room: str) -> dict[str, set[str]]:
    """The same between the direct children of a package, `room` itself standing for its own file."""

    def place(module: str) -> str:
        return ".".join(module.split(".")[: room.count(".") + 2])

    inside = {module for module in imports_at_import_time() if module == room or module.startswith(room + ".")}
    found: dict[str, set[str]] = {}
    for module in inside:
        for other in imports_at_import_time()[module] & inside:
            if room not in {module, other} and place(module) != place(other):
                found.setdefault(place(module), set()).add(place(other))
    return found


def circle(imports: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle, from a module back to it; empty when there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


if __name__ == "__main__":
    for package in packages():
        print(f"{len(children(package)):3}  {package}")  # noqa: T201
    print("circle of modules:", circle(imports_at_import_time()) or "none")  # noqa: T201
    for package in packages():
        if found := circle(between_rooms(package)):
            print(f"circle of rooms in {package}:", " -> ".join(found))  # noqa: T201
