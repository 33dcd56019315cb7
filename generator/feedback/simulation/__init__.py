"""The loop on users whose taste is known: `pigeon simulate`.

    commands    `pigeon simulate`
    run         a simulation from its plan to its figures
    store       its folder: the plan, and each arm's result as soon as there is one
    world       the truth, and all random numbers of users, nights and showings
    drawing     the model of the simulation: it reads histories and answers with looks
    showing     what readers show of a task, by the product's policies
    log         showings as the product's log has them
    learning    a retrain: click model, pairs, challenger, gate
    arms        what is shown to the same users in the same showings
    summary     lifts, gaps and costs with intervals over seeds
    tables      the figures as Markdown
    plot        the figures as SVG

Imports schemas, the click model, pairs, gate and off-policy value of generator.feedback, and of generator.nightly the policies and
the rule of clicked posters: it runs them as nights do. No torch.
"""
