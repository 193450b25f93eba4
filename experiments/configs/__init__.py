"""Configurations: short Python files, each with its command in the docstring."""
