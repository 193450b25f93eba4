"""Measurements of a run, as files, figures and one self-contained HTML page."""

from localist_jax.report.page import write

__all__ = ["write"]
