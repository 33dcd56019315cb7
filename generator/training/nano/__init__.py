"""Everything that only makes the nano checkpoint, and the simulated users of `pigeon evaluate`.

    commands               `pigeon train` and `pigeon evaluate`
    world                  every concept in every style and palette, less what is held out
    samples                the users and drawings that `pigeon evaluate` takes
    stages                 the recipe and what its stages train; not in the wheel
    imputation             the stages critic, imputer and retouch; not in the wheel

Imports `generator.datasets`, `generator.pigeon`, the rest of `generator.training` and `schemas`.
Imported by `generator.cli`, its commands only.
"""
