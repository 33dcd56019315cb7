"""Everything that only makes the nano checkpoint.

    commands               `pigeon train` and `pigeon evaluate`
    recipe                 which stage trains what, from what, for how long
    assemble               what the stages have trained, as one model
    world                  every concept in every style and palette, less what is held out
    text                   stage `text`, the text tokenizer
    vae, vae_finetune      stages `vae` and `polish`
    tokenizer              stage `tokenizer`
    codes                  stage `caches`, codes and latents of every picture
    decoder                stage `decoder`
    diffusion              stage `diffusion`
    distil                 stage `distil`, the same pictures in fewer steps
    scorer                 stage `scorer`
    language               stages `language` and `alignment`, and the simulated users that they learn from
    preference             stage `preference`
    samples                the users and drawings that `pigeon evaluate` takes
    imputation             the stages critic, imputer and retouch

Imports `generator.datasets`, `generator.pigeon`, the rest of `generator.training` and `schemas`.
Imported by `generator.cli`, its commands only.
"""
