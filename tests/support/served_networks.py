"""A model's networks as the backends reach them, without Triton.

Exported graphs, or the same modules in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from generator.pigeon.model import PigeonModel
from generator.serving import export
from generator.serving.agreement import Network
from generator.serving.backends.generation import AnswerGenerator
from generator.serving.backends.graph import Arrays, Graph


def graph_path(repository: Path, network: Network) -> Path:
    """Where a build puts a network's graph."""
    return repository / network.model / ("graph" if network.model == "personalizer" else "1") / network.file


class TorchGraph:
    """What `Graph` is for an exported network, for one that is not exported."""

    def __init__(self, network: Network) -> None:
        self._network = network
        example = network.example(1, torch.Generator().manual_seed(0))
        self.inputs = {name: (value.numpy().dtype, tuple(value.shape)) for name, value in example.items()}

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        with torch.no_grad():
            out = self._network.module(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        parts = out if isinstance(out, tuple) else (out,)
        return {name: part.numpy() for name, part in zip(self._network.outputs, parts, strict=True)}


class ServedNetworks:
    """A `Call` of the backends. `rows`: (model, rows) of each call; `versions`: the personalizer's."""

    def __init__(self, model: PigeonModel, graph: Callable[[Network], Any] = TorchGraph) -> None:
        lora = model.personalizer.lora()
        self._graphs = {network.title: graph(network) for network in export.networks(model)}
        self._width = model.config.generation.max_new_tokens
        self._generator = AnswerGenerator(
            self._graphs["personalizer"],
            {"lora_a": lora.a.detach().numpy(), "lora_b": lora.b.detach().numpy()},
            model.config.generation,
            model.config.ids.image_end,
            model.config.language.max_positions,
        )
        self.versions: list[int] = []
        self.rows: list[tuple[str, int]] = []

    @classmethod
    def exported(cls, model: PigeonModel, repository: Path) -> ServedNetworks:
        """The graphs of a build."""
        return cls(model, lambda network: Graph(graph_path(repository, network)))

    def __call__(self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: list[str], version: int = -1) -> Arrays:
        self.rows.append((model, len(next(iter(inputs.values())))))
        if model == "image_scorer":
            rows = [self._graphs["image_scorer/image"]({"images": image[None]}) for image in inputs["images"]]
            return {"image_embeddings": np.concatenate([row["features"] for row in rows])}
        if model == "personalizer":
            self.versions.append(version)
            out = self._answer(inputs)
            return {name: out[name] for name in outputs}
        out = self._graphs[model](inputs)
        return {name: out[name] for name in outputs}

    def _answer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        streams = [(int(inputs["seed"][0]), int(variant)) for variant in inputs["variants"]]
        temperatures = inputs["temperatures"].tolist() if "temperatures" in inputs else None
        sampler = self._generator.generate(
            inputs["prompt_ids"], inputs["condition"], streams, temperatures=temperatures
        )
        tokens = np.full((len(streams), self._width), -1)
        for number, row in enumerate(sampler.rows):
            tokens[number, : len(row)] = row
        return {
            "tokens": tokens,
            "counts": np.array([len(row) for row in sampler.rows]),
            "logprobs": sampler.logprobs,
            "sampling_logprobs": sampler.sampling_logprobs,
        }
