"""Training of Pigeon for any checkpoint, its evaluation, and the making of the nano checkpoint.

- `trainer`: one training loop: exact resume, last good state, loss curve
- `processes`: a step's work over parts and over processes
- `logprobs`: log-probabilities of answers
- `reconstruction`: stage 1, masked preference reconstruction
- `alignment`: stage 1 of any checkpoint on a data set
- `whole`: a checkpoint with a trained adapter in the place of its own
- `dataset`: a team's own catalogue and clicks as an immutable data set
- `commands`: `pigeon dataset`, `pigeon train align`, `pigeon evaluate --dataset`
- `progress`: bars and lines of long commands
- `dpo`: stage 2, direct preference optimization
- `efficientnet`: the network that judges pictures with ImageNet's weights
- `evaluation`: what a checkpoint draws, measured against known drawings
- `nano`: everything that only makes the nano checkpoint, and `pigeon train` and `pigeon evaluate`

Imports `generator.pigeon` and `schemas`, `dataset` and `commands` also `generator.storage`;
`nano` alone also imports `generator.datasets`. Imported by `generator.feedback`, lazily
because it imports torch; of `nano`, `generator.cli` imports the commands, and nobody else anything.
"""
