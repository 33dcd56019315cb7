"""The demo: the whole loop on real clicks, run as a user would run it, one `pigeon` command after the other.

May be imported by generator/cli.py only. Imports schemas, and generator.datasets for the art that it draws.
"""
