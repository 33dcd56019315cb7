"""The click model: from showings of posters to what a click on an answer can be expected of.

    commands    `pigeon loop ...`
    learning    the steps: showings, judgement, fit, activation or refusal
    showings    the SQL of showings, and their answers
    hygiene     which showings count: robots, repetitions, caps
    examples    showings as features
    bayes       Bayesian logistic regression
    fit         a click model from examples
    judge       whether it predicts later days of other users
    versions    the rows of fitted models: judged, active, retired
    worth       what drawn posters are worth over the items' own

Imports schemas and generator.storage; scikit-learn comes with the extra "loop". The night scores the models that come of it
by schemas/click_model.py and imports nothing from here.
"""
