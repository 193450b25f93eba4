"""Recruitment: one rule, in bits, by which a model takes on blocks, and an ensemble whole models."""
