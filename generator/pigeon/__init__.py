"""The network: Pigeon (arXiv 2410.14170) on LaVIT (arXiv 2309.04669), with inference.

PyTorch modules under the published weight names, in the order of a task's path:

- `preprocessing`: pictures -> the encoder's pixels
- `vit`, `quantizer`, `tokenizer`: pixels -> visual codes
- `masking`: which tokens of history and reference are kept
- `prompt`: texts, codes and masks -> token arrays
- `llama_step`, `sampling`, `personalizer`: LLaMA with LoRA, which answers in codes
- `decoder`: codes -> conditions of the diffusion model
- `ddim`, `lcm`, `diffusion`: conditions -> pictures
- `scorer`: how well pictures and texts fit
- `layers`: what several of these share
- `model`, `pipeline`: all networks together, and a task from pictures to scored pictures
- `config`, `presets`: sizes, and the two sets of them that have weights
- `checkpoint`, `pretrained`, `unet_lora`, `weights`: reading and writing checkpoints
- `one_codebook`: whether a checkpoint's parts belong together
- `placement`, `memory`: where they are loaded to, what they are computed in, and whether they fit

`prompt`, `sampling`, `ddim`, `lcm` and `preprocessing` need numpy (and Pillow) only and import nothing of the project but each other:
serving copies them.
`checkpoint`, `one_codebook`, `pretrained`, `unet_lora` and `weights` alone read or write files. Imports nothing of the project but
`schemas.errors`; imported by `generator.training` and `generator.serving`.
"""
