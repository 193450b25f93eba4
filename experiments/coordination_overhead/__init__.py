"""The study of the cost of having many LLMs."""
