"""The network: Pigeon (Xu et al., WWW 2025, arXiv 2410.14170) on LaVIT (Jin et al., ICLR 2024, arXiv 2309.04669).

PyTorch modules under the published weight names, and beside them the numpy-only modules that serving copies
(`prompt`, `sampling`, `ddim`, `preprocessing`). No I/O but `checkpoint`. Imports nothing of the project but `schemas`;
imported by `generator.training`, `generator.serving` and `generator.feedback`.

The path of one task:
history and reference images -> `tokenizer` -> code ids -> `masking` -> `prompt` -> `personalizer` (LLaMA) -> code ids
-> `decoder` -> prompt embeddings -> `diffusion` -> image; `scorer` ranks the candidates; `pipeline` runs it all.
"""
