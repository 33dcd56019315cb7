"""Changes to a copy of the tiny repository, as another build or a retrained adapter makes them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from generator.serving import adapters
from generator.serving.repository import MANIFEST, read_manifest
from tests.support.tiny_serving import other_adapter


def add_adapter(repository: Path, checkpoint: Path, number: int, work: Path) -> None:
    """Adapter `number`, as `install_adapter` writes it; no server is asked."""
    folder = repository / adapters.PERSONALIZER / str(number)
    shutil.copytree(folder.with_name("1"), folder, ignore=shutil.ignore_patterns("adapter.*"))
    language = json.loads((folder / "config.json").read_text())["language"]
    matrices = adapters.read_lora(other_adapter(checkpoint, work), language)
    info = {"base": read_manifest(repository).adapter_base, "sha256": adapters.content_hash(matrices)}
    adapters.write_adapter(folder, matrices, info)


def rename_build(repository: Path, build: str) -> None:
    """The same networks under another build's name, as after an upgrade of our code.

    Each model has one process.
    """
    path = repository / MANIFEST
    manifest = json.loads(path.read_text())
    for model, entry in manifest["models"].items():
        config = repository / model / "config.pbtxt"
        text = config.read_text().replace(manifest["build"], build).replace("count: 2", "count: 1")
        config.unlink()  # it may be a link to another repository's
        config.write_text(text)
        entry["files"]["config.pbtxt"] = hashlib.sha256(text.encode()).hexdigest()
    path.unlink()
    path.write_text(json.dumps({**manifest, "build": build}))
