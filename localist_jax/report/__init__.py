"""Measurements of a run, as files, figures and one self-contained HTML page."""
