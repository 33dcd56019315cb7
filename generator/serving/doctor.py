"""What is asked of each Triton server, or of a pipeline's folders, for `pigeon doctor`."""

from __future__ import annotations

from collections.abc import Iterator

from generator.serving.channel import is_loopback, open_channel
from generator.serving.repository import (
    BUILD_PARAMETER,
    MANIFEST,
    MODELS,
    RepositoryManifest,
    read_manifest,
    repository_folder,
)
from generator.serving.server import TritonServer
from generator.serving.tensors import one_line
from schemas.errors import InputError, ModelError, ServerUnavailable
from schemas.runtime.checkup import Finding, Probe, ok, warn, wrong
from schemas.settings import Settings
from schemas.settings_triton import TritonSettings

AREA = "triton"
PATIENCE_SECONDS = 5.0


def _servers(settings: Settings) -> Iterator[Finding]:
    if settings.models.preset == "pipeline":
        yield _pipeline(settings)
        return
    away = 0
    for address in settings.triton.addresses:
        try:
            yield ok(AREA, "server", f"{address}: {_build(settings.triton, address)}")
        except ServerUnavailable as error:
            away += 1
            yield wrong(AREA, "server", str(error), kind=ServerUnavailable)
        yield from _secrecy(settings.triton, address)
    if away == len(settings.triton.addresses):
        raise ServerUnavailable("no server answers, so models and weights were not asked for")


def _build(settings: TritonSettings, address: str) -> str:
    """Name and version that a server tells of itself.

    Raises:
        ServerUnavailable: it does not answer.
    """
    from tritonclient.utils import InferenceServerException

    client = open_channel(settings, address)
    try:
        told = client.get_server_metadata(client_timeout=PATIENCE_SECONDS)
    except InferenceServerException as error:
        how = "over TLS" if settings.tls else "without TLS (triton.tls)"
        raise ServerUnavailable(f"{address} does not answer {how}: {one_line(error)}") from None
    finally:
        client.close()
    return f"{told.name} {told.version}" + (", TLS" if settings.tls else "")


def _secrecy(settings: TritonSettings, address: str) -> Iterator[Finding]:
    if settings.tls or settings.admin_key is None or is_loopback(address):
        return
    text = f"{address}: triton.admin_key, which lets run code there, goes in clear text"
    yield warn(AREA, "TLS", text, "serve gRPC with TLS and set PIGEON_TRITON__TLS=true")


def _pipeline(settings: Settings) -> Finding:
    """What models.pipeline names, where the night draws with that and no Triton."""
    from generator.serving.pipeline.folders import check_folders

    try:
        found = check_folders(settings.models.pipeline)
    except InputError as error:
        return wrong(AREA, "pipeline", str(error), kind=InputError)
    return ok(AREA, "pipeline", f"{found.pipeline}: {found.kind}, drawn with by the night; Triton is not asked")


def _models(settings: Settings) -> Iterator[Finding]:
    if settings.models.preset == "pipeline":
        return
    quick = settings.triton.model_copy(
        update={"network_timeout_seconds": min(settings.triton.network_timeout_seconds, PATIENCE_SECONDS)}
    )
    manifest = _manifest(settings)
    if isinstance(manifest, Finding):
        yield manifest
    for address in settings.triton.addresses:
        server = TritonServer(quick, address)
        try:
            yield from _served(server, manifest if isinstance(manifest, RepositoryManifest) else None)
        except (ModelError, ServerUnavailable) as error:
            yield wrong(AREA, "models", str(error), kind=type(error))
        finally:
            server.close()


def _manifest(settings: Settings) -> RepositoryManifest | Finding | None:
    """What the model repository holds, where it is on this machine."""
    folder = repository_folder(settings)
    if not (folder / MANIFEST).is_file():
        return None
    try:
        return read_manifest(folder)
    except ModelError as error:
        return wrong(AREA, "repository", str(error), kind=ModelError)


def _served(server: TritonServer, manifest: RepositoryManifest | None) -> Iterator[Finding]:
    missing = server.unready()
    if missing:
        text = f"{server.address}: {len(missing)} of {len(MODELS)} are not loaded: {', '.join(missing[:3])}"
        yield wrong(AREA, "models", text, "`pigeon models build`, then `pigeon models load`", ModelError)
        return
    yield ok(AREA, "models", f"{server.address}: all {len(MODELS)} are ready")
    parts = server.parts()
    build = server.parameter(MODELS[-1], BUILD_PARAMETER)
    if manifest is not None and manifest.build != build:
        text = f"{server.address}: serves build {build}, the repository holds {manifest.build}"
        yield wrong(AREA, "weights", text, "`pigeon models load`", ModelError)
    else:
        yield ok(AREA, "weights", f"{server.address}: {parts.base_weights[:12]}, build {build[:12]}")


PROBES = (
    Probe(AREA, "server", _servers, seconds=30.0),
    Probe(AREA, "models", _models, seconds=40.0),
)
