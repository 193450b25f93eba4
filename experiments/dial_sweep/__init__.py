"""The dial study: does localism cost anything, and where? `python -m experiments.dial_sweep --help`."""
