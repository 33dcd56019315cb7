"""What trains the nano checkpoint, stage by stage; in a checkout only, wheels are without it.

    recipe                 which stage trains what, from what, for how long
    assemble               what the stages have trained, as one model
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

Imports what `training.nano` may, its `world` and `imputation` among them. Imported by the commands of `training.nano` only.
"""
