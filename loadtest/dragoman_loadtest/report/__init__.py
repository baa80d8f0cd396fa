"""The report of a load test: one HTML page that needs nothing else."""

from dragoman_loadtest.report.page import render

__all__ = ["render"]
