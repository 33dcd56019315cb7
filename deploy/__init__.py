"""How the product runs.

`deploy.local` starts the embedded servers and the demo on one machine; the rest are files.

May import `schemas`, and `deploy.local.demo` also generator.datasets. Only generator/cli.py imports it.
"""
