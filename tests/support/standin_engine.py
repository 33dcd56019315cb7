"""A stand-in for vLLM under the engine's service: a batch of requests over LLaMA's step in PyTorch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from generator.pigeon.llama_step import LoraMatrices
from generator.pigeon.model import PigeonModel
from generator.serving import export
from generator.serving.build import Built, build_repository
from generator.serving.engine.answers import AnswerRows
from generator.serving.engine.service import Finished
from generator.serving.engine_folder import EngineTarget
from tests.support.served_networks import graph_path


@dataclass(eq=False)
class StandinRequest:
    key: str
    embeds: Tensor
    lora: LoraMatrices
    output: list[int] = field(default_factory=list)


class StandinCore:
    """Keeps its batch without gaps; `slow` seconds per step."""

    name = "stand-in"

    def __init__(self, model: PigeonModel, rows: AnswerRows, slow: float = 0.0) -> None:
        self._model = model
        self._step = model.personalizer.step().eval()
        self._table = model.personalizer.llama.get_input_embeddings()
        self._rows = rows
        self._slow = slow
        self._new: list[StandinRequest] = []
        self._batch: list[StandinRequest] = []
        self.most = 0
        self.aborted: list[str] = []

    @property
    def busy(self) -> bool:
        return bool(self._new or self._batch)

    def add(self, key: str, embeds: Tensor, adapter: Path) -> None:
        state = load_file(adapter / "adapter_model.safetensors")
        self._new.append(
            StandinRequest(key, embeds, LoraMatrices.from_state(state, self._model.config.language.depth, 1))
        )

    def abort(self, keys: Sequence[str]) -> None:
        self.aborted += keys
        self._new = [request for request in self._new if request.key not in keys]
        self._leave([request for request in self._batch if request.key in keys])

    @torch.no_grad()
    def step(self) -> Sequence[Finished]:
        time.sleep(self._slow)
        first = len(self._batch)
        self._batch += self._new
        added = [(first + number, request.key, request.output) for number, request in enumerate(self._new)]
        self._new = []
        self._rows.update([], added, [])
        self.most = max(self.most, len(self._batch))
        logits = torch.cat([self._logits(request) for request in self._batch])
        for request, token in zip(self._batch, self._rows.draw(logits.numpy()).tolist(), strict=True):
            request.output.append(token)
        config = self._model.config
        ended = [
            request
            for request in self._batch
            if request.output[-1] == config.ids.image_end or len(request.output) == config.generation.max_new_tokens
        ]
        self._leave(ended)
        return [Finished(request.key, request.output, 0) for request in ended]

    def _logits(self, request: StandinRequest) -> Tensor:
        drawn = self._table(torch.tensor(request.output, dtype=torch.int64))
        embeds = torch.cat([request.embeds, drawn])[None]
        ones = torch.ones(embeds.shape[:2], dtype=torch.int64)
        cache = self._step.empty_cache(1)
        logits: Tensor = self._step(embeds, ones, ones[:, :0], cache, cache, request.lora.a, request.lora.b)[0]
        return logits

    def _leave(self, ended: Sequence[StandinRequest]) -> None:
        """Empty rows, and let the last ones move into them."""
        for request in ended:
            row, last = self._batch.index(request), len(self._batch) - 1
            moved = [(last, row, False)] if row != last else []
            self._rows.update([row], [], moved)
            self._batch[row] = self._batch[last]
            self._batch.pop()


def engine_build(checkpoint: Path, plain: Path, repository: Path, socket: Path) -> tuple[Built, list[str]]:
    """A build for an engine, its graphs copied from a plain build, and their names."""
    exported: list[str] = []

    def copied(network: export.Network, path: Path) -> export.Agreement:
        exported.append(network.title)
        shutil.copyfile(graph_path(plain, network), path)
        return export.Agreement(network.title, 0.0, 1.0, 0.0, 0)

    with patch.object(export, "export", copied):
        return build_repository(checkpoint, "nano", repository, target=EngineTarget(socket)), exported
