"""The Triton model `image_scorer` of a GPU server: unit features of pictures, of texts, or of both.

The towers are models of their own (`image_tower`, `text_tower`), which Triton batches; here texts become tokens.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from generator.serving.backends.graph import Arrays, BadInput
from generator.serving.gpu.backends.calls import answer, call, inputs_of, model_folder


class TritonPythonModel:
    """images (N, S, S, 3) -> image_embeddings (N, F); texts (M,) UTF-8 -> text_embeddings (M, F)."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = model_folder(args)
        scorer = json.loads((folder / "config.json").read_text(encoding="utf-8"))["scorer"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._text_tokens, self._pad_id = int(scorer["text_tokens"]), int(scorer["pad_id"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, self._run) for request in requests]

    def _run(self, request: Any) -> Arrays:
        inputs = inputs_of(request)
        if not inputs:
            raise BadInput("image_scorer: give images, texts or both")
        wanted = set(request.requested_output_names())
        out: Arrays = {}
        if "images" in inputs and "image_embeddings" in wanted:
            out["image_embeddings"] = self._features(request, "image_tower", {"images": inputs["images"]})
        if "texts" in inputs and "text_embeddings" in wanted:
            out["text_embeddings"] = self._features(request, "text_tower", {"tokens": self._ids(inputs["texts"])})
        return out

    def _features(self, request: Any, tower: str, inputs: Arrays) -> NDArray[np.float32]:
        return call(request, tower, inputs, ["features"])["features"]

    def _ids(self, texts: NDArray[np.object_]) -> NDArray[np.int64]:
        """-> (M, T), cut or padded behind."""
        rows = np.full((len(texts), self._text_tokens), self._pad_id, dtype=np.int64)
        for row, text in zip(rows, texts, strict=True):
            try:
                ids = self._tokenizer.encode(text.decode("utf-8"), add_special_tokens=False).ids[: self._text_tokens]
            except UnicodeDecodeError as error:
                raise BadInput(f"texts: not UTF-8 ({error})") from error
            row[: len(ids)] = ids
        return rows
