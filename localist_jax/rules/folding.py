"""How text is compared with phrases: what looks the same to a reader is the same here.

Each character stands for itself after compatibility decomposition and case folding, without accents and invisible
characters. A variant of a Latin letter, by its name in Unicode (with a stroke, a hook, a tail; small capital, turned),
is that letter; a character that can be taken for ASCII letters or digits, by Unicode's confusables, is those; white
space of any kind and length is one space. ASCII characters are only case-folded: l, I and 1 stay apart, and so do O
and 0, rn and m. Character by character, so that a text may be folded as it grows.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata

INVISIBLE = {"Mn", "Me", "Cf", "Cc", "Cs"}  # categories of what is left out
BLANKS = "\u2800"  # looks like a space, but is none for Python
JOINING = {"-", "'"}  # within words and numbers
SAME_SHAPE = {"rn": "m"}  # as which the table keeps every m
ENCLOSED = re.compile(r".* (?:LATIN (?:SMALL|CAPITAL)|SYMBOL) LETTER ([A-Z])")
TURNED = re.compile("TURNED|INVERTED|SIDEWAYS")  # a turned m is rather a w
FILLERS = "\u115f\u1160\u17b4\u17b5"


@functools.cache
def lookalikes() -> tuple[dict[str, str], dict[str, str]]:
    """Non-ASCII character → the ASCII letters or digits that it is taken for (Unicode's confusables).

    And capital → the letter whose capital it is taken for: Greek Ν is an n, although its small ν is a v. One letter
    goes before several; those of right-to-left scripts stand between marks in the table; ’ and dashes are there too.
    """
    from confusable_homoglyphs.confusables import confusables_data

    found, several, capitals = {}, {}, {}
    for key, others in confusables_data.items():
        character = key.strip("\u200e")
        if len(character) != 1 or character.isascii():
            continue
        for other in (o["c"] for o in others):
            bare = _bare(other)
            if not bare.isascii() or not (bare.isalnum() or bare in JOINING):
                continue
            if len(other) > 1:
                several[character] = SAME_SHAPE.get(bare, bare).casefold()
                continue
            found[character] = bare.casefold()
            if character.isupper() and bare.isupper():
                capitals[character] = bare.casefold()
    return several | found, capitals


def _bare(text: str) -> str:
    """Without marks: ø stands in the table as an o with a stroke over it."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if unicodedata.category(c) not in INVISIBLE)


def named(character: str) -> str:
    """The letter of which a character is a variant by its name in Unicode; "" if it is none.

    >>> [named(c) for c in "øꜱʙƥæж"]
    ['o', 's', 'b', 'p', '', '']
    """
    script, _, rest = unicodedata.name(character, "").partition(" ")
    head, _, tail = rest.partition(" WITH ")
    letters = [word for word in head.split() if len(word) == 1 and word.isalpha()]
    two = "LETTER" in tail or "DOUBLE" in head or "SHARP" in head
    return letters[0].lower() if script == "LATIN" and len(letters) == 1 and not two else ""


def enclosed(character: str) -> str:
    """The letter or digit in a circle, a square, brackets or on a flag; "" if the character is none of these.

    >>> [enclosed(c) for c in "🅿⒫ⓟ🇵❶⑴p"]
    ['p', 'p', 'p', 'p', '1', '1', '']
    """
    if unicodedata.category(character) not in ("No", "So"):
        return ""
    name = unicodedata.name(character, "")
    read = unicodedata.numeric if "CIRCLED" in name and "DIGIT" in name else unicodedata.digit
    value, found = read(character, None), ENCLOSED.fullmatch(name)
    return f"{value:.0f}" if value is not None else found[1].lower() if found else ""


@functools.lru_cache(maxsize=1 << 16)
def fold_character(character: str) -> str:
    """Return the folded form of one character before white space is joined, or "" if it is invisible."""
    if character.isascii():
        if character.isspace():
            return " "
        return character.casefold() if character.isprintable() else ""
    if whole := enclosed(character) or _by_name(character):
        return whole
    (table, capitals), out = lookalikes(), []
    for part in unicodedata.normalize("NFKD", character):
        if part.isspace() or part in BLANKS:
            out.append(" ")
        elif part in capitals:
            out.append(capitals[part])
        elif part not in FILLERS and unicodedata.category(part) not in INVISIBLE:
            small = unicodedata.normalize("NFKD", part.casefold())
            seen = "".join(_looks_like(letter, table) for letter in small)
            # The table goes by the character itself too: Cherokee's small letters fold to capitals.
            out.append(seen if seen.isascii() else table.get(part, seen))
    folded = "".join(out)
    return folded if folded.isascii() else table.get(character, folded)


def _looks_like(small: str, table: dict[str, str]) -> str:
    if small.isascii():
        return small.casefold()
    if unicodedata.category(small) in INVISIBLE:
        return ""
    return _by_name(small) or table.get(small) or table.get(small.upper()) or named(small) or small


def _by_name(character: str) -> str:
    """Return the letter that a character's name gives (`named`); turned letters are left to the table."""
    return "" if TURNED.search(unicodedata.name(character, "")) else named(character)


def fold(text: str, after: str = "x") -> str:
    """Folded text; `after` is what stands before it (a space swallows those that follow).

    >>> fold("Ｎｏ\\u200b  Intеraсtión")
    'no interaction'
    """
    out = []
    last = after[-1:]
    for character in text:
        for part in fold_character(character):
            if part != " " or last != " ":
                out.append(part)
            last = part
    return "".join(out)


def is_word(character: str) -> bool:
    """Whether a folded character belongs to a word."""
    return character.isalnum() or character == "_"


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A folded phrase; an open end need not be the border of a word."""

    text: str
    open_left: bool = False
    open_right: bool = False

    @classmethod
    def of(cls, phrase: str) -> Pattern:
        """From a phrase as it is written in a rule file; its text is "" if there is nothing to see in it."""
        bare = phrase.strip()
        left, right = bare.startswith("*"), bare.endswith("*")
        return cls(fold(bare.strip("*")).strip(), left, right)

    @classmethod
    def all_of(cls, phrase: str) -> tuple[Pattern, ...]:
        """Return the foldings of a phrase in small letters, capitals and capital initials; most alphabets have one.

        >>> [pattern.text for pattern in Pattern.all_of("Νόμος")]
        ['nomoo', 'vomoo']
        """
        if phrase.isascii():
            return (cls.of(phrase),)
        ways = (phrase, phrase.lower(), phrase.upper(), phrase.title())
        return tuple(dict.fromkeys(cls.of(way) for way in ways))

    def begins(self, before: str) -> bool:
        """Whether it may begin after the character `before` ("" at the start of the text)."""
        return self.open_left or not (before and is_word(before) and is_word(self.text[0]))

    def ends(self, behind: str) -> bool:
        """Whether it may end before the character `behind` ("" at the end of the text)."""
        return self.open_right or not (behind and is_word(behind) and is_word(self.text[-1]))

    def within(self, text: str) -> bool:
        """Whether it occurs in a folded text that stands alone."""
        at = text.find(self.text)
        while at >= 0:
            end = at + len(self.text)
            if self.begins(text[at - 1 : at] if at else "") and self.ends(text[end : end + 1]):
                return True
            at = text.find(self.text, at + 1)
        return False

    def implied_by(self, other: Pattern) -> bool:
        """Whether every text in which `other` occurs has an occurrence of this one inside it."""
        at = other.text.find(self.text)
        while at >= 0:
            end = at + len(self.text)
            left = self.begins(other.text[at - 1]) if at else self.open_left or not other.open_left
            right = (
                self.ends(other.text[end])
                if end < len(other.text)
                else self.open_right or not other.open_right
            )
            if left and right:
                return True
            at = other.text.find(self.text, at + 1)
        return False
