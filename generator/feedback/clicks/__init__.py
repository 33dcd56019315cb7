"""The click model: from showings of posters to what a click on an answer can be expected of.

    commands    `pigeon loop ...`
    learning    the steps: showings, judgement, fit, activation or refusal
    showings    the SQL of showings, and their answers
    hygiene     which showings count: robots, repetitions, caps
    examples    showings as features
    bayes       Bayesian logistic regression
    fit         a click model from examples
    judge       whether it predicts later days of other users
    ranking     a model without held-out users ranks stored answers, for a retraining
    versions    the rows of fitted models: judged, active, retired

Imports schemas and generator.storage, ranking also of generator.feedback ports, reward_pairs and split; scikit-learn comes with
the extra "loop". The night scores the models that come of it by schemas/click_model.py and imports nothing from here.
"""
