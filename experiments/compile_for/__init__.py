"""Compiles a configuration's programs for devices that are not here, and says whether and how fast they can run."""
