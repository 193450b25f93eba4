"""The models that theorems are checked on: rows of attention, gated networks, streams, searches, trained runs."""
