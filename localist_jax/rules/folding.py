"""How text is compared with phrases: what looks the same to a reader is the same here.

Each character stands for itself after compatibility decomposition and case folding, without accents and invisible
characters; a character of another script that can be taken for an ASCII letter or digit is that one; white space of
any kind and length is one space. ASCII characters are only case-folded: l, I and 1 stay apart, and so do O and 0.
Character by character, so that a text may be folded as it grows.
"""

from __future__ import annotations

import dataclasses
import functools
import unicodedata

INVISIBLE = {"Mn", "Me", "Cf", "Cc", "Cs"}  # categories of what is left out
BLANKS = "\u2800"  # looks like a space, but is none for Python
FILLERS = "\u115f\u1160\u17b4\u17b5"


@functools.cache
def lookalikes() -> tuple[dict[str, str], dict[str, str]]:
    """Non-ASCII character → the ASCII letter or digit that it is taken for (Unicode's confusables).

    And capital → the letter whose capital it is taken for: Greek Ν is an n, although its small ν is a v.
    """
    from confusable_homoglyphs.confusables import confusables_data

    found, capitals = {}, {}
    for character, others in confusables_data.items():
        if len(character) == 1 and not character.isascii():
            for other in others:
                if len(other["c"]) == 1 and other["c"].isascii() and other["c"].isalnum():
                    found[character] = other["c"].casefold()
                    if character.isupper() and other["c"].isupper():
                        capitals[character] = other["c"].casefold()
    return found, capitals


@functools.lru_cache(maxsize=1 << 16)
def fold_character(character: str) -> str:
    """What one character contributes, before white space is joined; "" where it is invisible."""
    if character.isascii():
        if character.isspace():
            return " "
        return character.casefold() if character.isprintable() else ""
    (table, capitals), out = lookalikes(), []
    for part in unicodedata.normalize("NFKD", character):
        if part.isspace() or part in BLANKS:
            out.append(" ")
        elif part in capitals:
            out.append(capitals[part])
        elif part not in FILLERS and unicodedata.category(part) not in INVISIBLE:
            out.extend(_looks_like(small, table) for small in unicodedata.normalize("NFKD", part.casefold()))
    return "".join(out)


def _looks_like(small: str, table: dict[str, str]) -> str:
    if small.isascii():
        return small.casefold()
    if unicodedata.category(small) in INVISIBLE:
        return ""
    return table.get(small) or table.get(small.upper(), small)


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
        """Those of a phrase in small letters, in capitals, and with capital initials too: one, but for a few alphabets.

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
