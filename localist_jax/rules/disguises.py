"""Look-alikes as the checker knows them: letters of other scripts, put together by shape, by hand.

Enforcement takes its look-alikes from Unicode's table and from names (`folding`). This list owes nothing to them, so
that the checker can find what they lack; and variants of Latin letters (strokes, hooks, small capitals, ligatures) are
transliterated by `anyascii`, where its answer is confirmed by the name. Accents, compatibility forms (full width,
mathematical letters) and case are no business of either: Unicode's decomposition and case folding see to them, after a
look at the capitals below. A Greek capital nu is an n and its small letter a v, so a Greek phrase is looked for in
small letters and in capitals.
"""

from __future__ import annotations

import unicodedata

from anyascii import anyascii

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
    "n": "ոռη",
    "o": "оοօ",
    "p": "рρ🆊",
    "q": "ԛգ",
    "s": "ѕꜱ",
    "u": "υս",
    "v": "ѵνʋ",
    "w": "ԝաɯ",
    "x": "хχ",
    "y": "уүγ",
    "ae": "æӕ",
    "oe": "œ",
    "'": "’‘ʼ",
    "-": "‐‑‒–",
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
SIGNS = ("CIRCLED", "PARENTHESIZED", "FULL", "COMMA")  # digits in a circle or brackets, or before a stop


def latin(character: str) -> str:
    """The ASCII letter of which a Latin letter is a variant, on a sign too; "" if it is none, or not surely.

    >>> [latin(c) for c in "øꜱæŋ🅿❶"]
    ['o', 's', '', '', 'p', '1']
    """
    name, kind = unicodedata.name(character, ""), unicodedata.category(character)
    plain = "".join(filter(str.isalnum, anyascii(character))).upper()
    before, _, behind = name.partition(" WITH ")
    head = before.split()
    if kind == "No":
        return plain if len(plain) == 1 and "DIGIT" in head and {*SIGNS} & {*head} else ""
    other = {"TURNED", "INVERTED", "SIDEWAYS", "DOUBLE", "SHARP"} & {*head} or "LETTER" in behind
    sure = kind == "So" or (head[:1] == ["LATIN"] and not other)
    return plain.lower() if sure and "LETTER" in head and plain in head and len(plain) == 1 else ""
