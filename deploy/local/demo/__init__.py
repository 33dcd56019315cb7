"""The demo: the whole loop on real clicks, run as a user would run it.

    commands    `pigeon demo | demo data | demo feedback`
    run         the demo from end to end
    steps       one `pigeon` command after the other, a line of outcome each
    data        MovieLens-100k as catalogue, clicks and recommendations, with posters that we draw
    simulator   simulated users who look at a night's posters and click by taste
    page        the page about what the loop did
    console     `pigeon serve` beside the servers that `--keep` leaves running
    progress    a bar on a terminal, lines elsewhere

Imported by generator/cli.py only. Imports schemas, and generator.datasets for the art that it draws.
"""
