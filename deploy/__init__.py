"""How the product runs.

    local    the embedded servers and the demo on one machine
    doctor   `pigeon doctor`

The rest are files.

May import `schemas`, and `deploy.local.demo` also generator.datasets. Only generator/cli.py imports it.
"""
