"""The loop: what people did with posters becomes preference pairs, a retrained adapter, a gate's verdict and a promotion.

Imports schemas, generator.serving (api, client, adapters: no torch) and generator.nightly's S3 store; calls generator.training
only through functions imported when a training starts. Imported by generator.cli alone. Never imports torch.

    pairs -> split -> snapshot -> retrain (DPO) -> measure -> gate -> registry -> rollout
"""
