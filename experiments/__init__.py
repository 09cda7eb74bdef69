"""Sweeps over this project's scripts, their analysis, and the papers' tables and figures.

One command line, ``python -m experiments``; docs/experiments.md is its page. Not installed: it runs
the scripts that lie beside it.
"""
