"""Hierarchy: an ensemble of whole LLMs, recruited by the rule that recruits blocks, routed and mixed in bits."""
