"""Guesses of what concepts look like in styles in which they were never drawn, for nano to learn from.

- `imputer`: stage `imputer`, guesses from a concept's other drawings and from its neighbours'
- `refiner`: stage `retouch`, which redraws the guesses in two styles
- `neighbours`: which concepts are drawn alike
- `auxiliary_art`: two more icon sets, which the imputer may look at
- `perceptual_loss`: how alike two posters are by EfficientNet's features
- `latent_critic`: stage `critic`, how alike two drawings are by their latents

Imports `training.nano.world`, `training.{trainer,processes}`, `training.evaluation.efficientnet` and `generator.datasets`.
Imported by `training.nano.stages`.
"""
