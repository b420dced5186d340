"""Benchmarks: `voicegw bench NAME`, from a checkout on Linux.

A module here that has `MEASURES`, names to functions of `Settings` that return a `Result`, adds benchmarks. What they
compare with comes from PyPI and npm into environments of its own, kept in `.bench/`.
"""
