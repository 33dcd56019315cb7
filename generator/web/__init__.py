"""HTTP for recommenders that are not Python, and a console for operators: `pigeon serve`.

    commands             `pigeon serve`
    server               uvicorn, its signals, and what is told at the start
    protocol             HTTP/1.1 without upgrades
    app                  the whole web as one ASGI application
    context              what the pages share
    outside              what is asked of the consumers, as protocols; generator/cli.py gives it
    guard                what every request passes: limits, who asks, what they may, headers
    access, limits       who asks, by token, session or proxy; requests per second of each client
    signing, showings    short signed texts; showing tokens
    api, bodies          posters and feedback; what they take and give
    direct               well-formed questions for posters, answered before the framework
    reading              the manifest's reader, which starts without S3
    signed_urls          addresses of images, signed so that they stay the same for a while
    problems             errors as answers
    health, metrics      what is away; every Prometheus metric, by name
    audit                the audit log
    console              the pages

Imports `nightly`, `feedback` and `storage` of generator; imported by the command line only.
"""
