"""Look-alikes as the checker knows them: letters of other scripts, put together by shape, by hand.

Enforcement takes its look-alikes from Unicode's table (`folding`). This list owes nothing to that table, so that the
checker can find what it lacks. Accents, compatibility forms (full width, mathematical letters) and case are no business
of the list: Unicode's decomposition and case folding see to them, after a look at the capitals below. A Greek capital
nu is an n and its small letter a v, so a Greek phrase is looked for in small letters and in capitals.
"""

from __future__ import annotations

# Small letters after case folding, by what an English reader takes them for.
ALIKE = {
    "a": "аɑα",  # Cyrillic, Latin alpha, Greek
    "b": "Ьь",
    "c": "с",
    "d": "ԁ",
    "e": "еҽ",
    "g": "ɡց",
    "h": "һհ",
    "i": "іıɩι",
    "j": "јϳ",
    "n": "ոռ",
    "o": "оοօ",
    "p": "рρ",
    "q": "ԛգ",
    "s": "ѕꜱ",
    "u": "υսʋ",
    "v": "ѵν",
    "w": "ԝաɯ",
    "x": "хχ",
    "y": "уүγ",
}
# Capitals, whose small letters look like nothing of ours, or like another letter.
ALIKE_CAPITALS = {
    "b": "ВΒ",
    "e": "Ε",
    "h": "НΗ",
    "k": "КΚ",
    "m": "МΜ",
    "n": "Ν",
    "t": "ТΤ",
    "y": "Υ",
    "z": "Ζ",
}
TABLE = {c: letter for letter, others in ALIKE.items() for c in others}
CAPITALS = {c: letter for letter, others in ALIKE_CAPITALS.items() for c in others}
