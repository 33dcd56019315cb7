"""The Triton model `image_scorer`: unit features of pictures, of texts, or of both."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from generator.serving.backends.graph import Arrays, BadInput, Graph
from generator.serving.backends.triton import answer, inputs_of, model_folder, parameter


class TritonPythonModel:
    """Unit features of images and texts, each row computed alone.

    images (N, S, S, 3) -> image_embeddings (N, F); texts (M,) UTF-8 -> text_embeddings (M, F).
    """

    def initialize(self, args: dict[str, str]) -> None:
        folder = model_folder(args)
        threads = int(parameter(args, "threads", "1"))
        scorer = json.loads((folder / "config.json").read_text(encoding="utf-8"))["scorer"]
        self._images = Graph(folder / "image.onnx", threads)
        self._texts = Graph(folder / "text.onnx", threads)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._text_tokens, self._pad_id = int(scorer["text_tokens"]), int(scorer["pad_id"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, self._run) for request in requests]

    def _run(self, request: Any) -> Arrays:
        inputs = inputs_of(request)
        if not inputs:
            raise BadInput("image_scorer: give images, texts or both")
        out: Arrays = {}
        if "images" in inputs:
            images = inputs["images"]
            rows = (self._images({"images": images[n : n + 1]})["features"] for n in range(len(images)))
            out["image_embeddings"] = _stack(rows)
        if "texts" in inputs:
            rows = (self._texts({"tokens": self._ids(text)})["features"] for text in inputs["texts"])
            out["text_embeddings"] = _stack(rows)
        wanted = set(request.requested_output_names())
        return {name: value for name, value in out.items() if name in wanted}

    def _ids(self, text: bytes) -> NDArray[np.int64]:
        """-> (1, T), cut or padded behind."""
        try:
            ids = self._tokenizer.encode(text.decode("utf-8"), add_special_tokens=False).ids[: self._text_tokens]
        except UnicodeDecodeError as error:
            raise BadInput(f"texts: not UTF-8 ({error})") from error
        row = np.full((1, self._text_tokens), self._pad_id, dtype=np.int64)
        row[0, : len(ids)] = ids
        return row


def _stack(rows: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    parts = list(rows)
    if not parts:
        raise BadInput("image_scorer: the batch is empty")
    return np.concatenate(parts)
