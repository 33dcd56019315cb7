"""Training of Pigeon for any checkpoint, its evaluation, and the making of the nano checkpoint.

- `trainer`: one training loop: exact resume, last good state, loss curve
- `processes`: a step's work over parts and over processes
- `memory`: bytes of a step beside the weights
- `logprobs`: log-probabilities of answers
- `reconstruction`: stage 1, masked preference reconstruction
- `dpo`: stage 2, direct preference optimization
- `evaluation`: what a checkpoint draws, measured against known drawings
- `catalog`: a team's own catalogue: data set, stage 1 on it, evaluation; `pigeon dataset`
- `nano`: everything that only makes the nano checkpoint (what trains it is in no wheel), and `pigeon train` and `pigeon evaluate`

Imports `generator.pigeon` and `schemas`, `catalog` also `generator.storage` and `generator.serving.repository`; `nano` alone also
imports `generator.datasets`.
Imported by `generator.feedback`, lazily because it imports torch; of `nano` and `catalog`, `generator.cli` imports the commands,
and nobody else anything.
"""
