"""What the theorems are checked on: rows of attention, small gated networks, streams, searches, trained runs."""
