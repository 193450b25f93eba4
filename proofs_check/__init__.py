"""Every theorem of this project stated, attained, attacked and checked: `python -m proofs_check`."""
