"""Experiments: a launcher, configurations, and one folder per study."""
