"""Recruitment where the truth is known: a generated stream of fields; see `__main__`."""
