"""Model control of one or several Triton servers: what they serve, loading and unloading; no torch.

Of several servers those that are away, or refuse, are named in a warning and not used; only when all of them do it is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from generator.serving.api import ServerState
from generator.serving.gpu.release import check_release
from generator.serving.pool import ServerPool
from generator.serving.repository import (
    BATCH_PARAMETER,
    BUILD_PARAMETER,
    MANIFEST,
    RepositoryManifest,
    check_repository,
    read_manifest,
    repository_folder,
)
from generator.serving.server import PART_PARAMETERS, ServedParts, TritonServer
from schemas.errors import ModelError, PigeonError, ServerUnavailable
from schemas.settings import Settings

T = TypeVar("T")

log = logging.getLogger("pigeon.serving")


class ModelControl:
    """The servers of the setting `triton.url`; needs `triton.admin_key` where they guard their control."""

    def __init__(self, settings: Settings, expected: ServedParts | None = None) -> None:
        """`expected`: what several servers should serve; else the repository says, or most of them."""
        self._settings = settings
        self._given = expected
        servers = [TritonServer(settings.triton, address) for address in settings.triton.addresses]
        self._pool = ServerPool(servers, self._expected)

    def close(self) -> None:
        """Close the connections; the object cannot be used after it."""
        for member in self._pool.members:
            member.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def servers(self) -> Sequence[ServerState]:
        """The servers, with what they have answered."""
        return self._pool.states()

    @cached_property
    def tokenizer_version(self) -> str:
        """Changes when tokens or embeddings would; the cache key of `image_features`.

        Raises:
            ServerUnavailable, ModelError: Triton cannot be asked, or serves something that we did not build.
        """
        return self._part("tokenizer_version")

    @cached_property
    def drawing_version(self) -> str:
        """Hash of what turns codes into pixels; part of a picture's key.

        Raises:
            ServerUnavailable, ModelError: as `tokenizer_version`.
        """
        return self._part("drawing_version")

    @cached_property
    def base_weights(self) -> str:
        """Hash of the checkpoint that answers, without a retrained adapter.

        Raises:
            ServerUnavailable, ModelError: as `tokenizer_version`.
        """
        return self._part("base_weights")

    @cached_property
    def pictures_at_once(self) -> int:
        """How many pictures the servers draw at once; 1 where each is drawn alone, as on CPUs.

        Raises:
            ServerUnavailable, ModelError: as `tokenizer_version`.
        """
        members = self._pool.members if self._pool.is_single else self._pool.look()
        return int(members[0].server.parameter("pictures", BATCH_PARAMETER, "1"))

    def ready(self) -> bool:
        """Whether a server answers, and every one that does has all of our models."""
        answers = []
        for member in self._pool.members:
            try:
                answers.append(not member.server.unready())
            except ServerUnavailable:
                continue
        return bool(answers) and all(answers)

    def loaded_versions(self, model: str, *, anywhere: bool = False) -> tuple[int, ...]:
        """The versions of a model that every server in use serves, ascending; or any server (`anywhere`).

        Raises:
            ServerUnavailable: no server can be reached, or they refuse model control.
            ModelError: none of several serves what it should.
        """
        if anywhere or self._pool.is_single:
            found = self._on_all(lambda server: server.loaded_versions(model))
            return tuple(sorted(frozenset().union(*found)))
        found = [member.server.loaded_versions(model) for member in self._pool.look()]
        return tuple(sorted(found[0].intersection(*found)))

    def load(self, model: str) -> None:
        """Load a model on every server, or what is new of it: versions that are unchanged go on serving.

        Raises:
            ModelError: the servers read it and refused; a reason is in the message.
            ServerUnavailable: no server can be reached, or they refuse model control.
        """
        self._on_all(lambda server: server.load(model))

    def unload(self, model: str) -> None:
        """Stop serving a model; returns before the servers have finished what is under way.

        Raises:
            ServerUnavailable: no server can be reached, or they refuse model control.
        """
        self._on_all(lambda server: server.unload(model))

    def load_repository(self, checkpoint: Path | None = None) -> RepositoryManifest:
        """Check the repository, then load it into one server after the other.

        It is the one that the settings name; `pigeon` is loaded last.

        After a server that refuses it, those that serve are left as they are.

        Raises:
            ModelError: the repository does not fit (nothing was loaded), or the servers serve another one.
            ServerUnavailable: no server can be reached, or they refuse model control.
        """
        manifest = check_repository(repository_folder(self._settings), self._settings.models.preset, checkpoint)

        refused: list[TritonServer] = []
        left: list[str] = []

        def load_all(server: TritonServer) -> None:
            if refused and not server.unready():
                left.append(server.address)
                raise ModelError(f"Triton at {server.address}: left as it was, because {refused[0].address} refused")
            try:
                _check_host(manifest, server)
                for name in manifest.models:
                    server.load(name)
            except ModelError:
                refused.append(server)
                raise

        try:
            self._on_all(load_all)
        except ModelError as error:
            if not left:
                raise
            raise ModelError(f"{error}; left as they were: {', '.join(left)}") from error
        self.check_served(manifest)
        return manifest

    def check_served(self, manifest: RepositoryManifest) -> None:
        """Whether the servers serve this very build; of several, whether any does.

        Raises:
            ModelError: a model is of another build, or not ours, or the repository is for GPU hosts of another version.
            ServerUnavailable: no server can be reached, or they refuse model control.
        """

        def check(server: TritonServer) -> None:
            _check_host(manifest, server)
            for name in manifest.models:
                build = server.parameter(name, BUILD_PARAMETER)
                if build != manifest.build:
                    raise ModelError(
                        f"Triton at {server.address}: serves {name} of build {build}, the repository holds "
                        f"{manifest.build}; run `pigeon models load`"
                    )

        self._on_all(check)

    def _on_all(self, work: Callable[[TritonServer], T]) -> list[T]:
        """What `work` gives on each server where it succeeds."""
        results, errors = [], list[PigeonError]()
        for member in self._pool.members:
            try:
                results.append(work(member.server))
            except (ModelError, ServerUnavailable) as error:
                errors.append(error)
            self._pool.look_again(member)
        if not results:
            raise next((error for error in errors if isinstance(error, ModelError)), errors[0])
        for problem in errors:
            log.warning("%s; the other servers go on without it", problem)
        return results

    def _part(self, name: str) -> str:
        if self._pool.is_single:
            return self._pool.members[0].server.parameter(*PART_PARAMETERS[name])
        value: str = getattr(self._pool.expected(), name)
        return value

    def _expected(self) -> ServedParts | None:
        """What was given, or what the model repository holds, where it is on this machine."""
        if self._given is not None:
            return self._given
        folder = repository_folder(self._settings)
        if not (folder / MANIFEST).is_file():
            return None
        manifest = read_manifest(folder)
        return ServedParts(manifest.tokenizer_version, manifest.drawing_version, manifest.base_weights)


def _check_host(manifest: RepositoryManifest, server: TritonServer) -> None:
    """A repository for GPUs is for one version of the server; its host's entrypoint compares the rest."""
    if manifest.gpu is not None:
        check_release(manifest.gpu, server.address, server.release())
