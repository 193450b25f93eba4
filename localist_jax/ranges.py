"""Fields of the configuration: default, range and meaning of each in one declaration.

A field is declared by `number`, `choice`, `text` or `flag`; the declaration stays with it as metadata, from which it
is checked, and from which help and reference pages can be made (`described`).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator
from typing import Any

MOST = 2**31 - 1  # of an integer that says nothing else: what an int32 holds
KEY = "range"
LARGE = 10**300  # no float holds much more
LONGEST = 80  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class Range:
    """What a field may be.

    Attributes:
      about: what the field is, in one line.
      least, above: the smallest value, or what it must lie above; None: no such bound.
      most, below: the largest value, or what it must lie below.
      besides: a value outside of these that has a meaning of its own.
      choices: the values of a field that is no number.
      noun: what the value is called in messages.
    """

    about: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    besides: float | None = None
    choices: tuple[str, ...] = ()
    noun: str = ""

    @property
    def is_number(self) -> bool:
        """Whether the field is a number; each has a lower and an upper bound."""
        return self.least is not None or self.above is not None

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range; NaN lies in none."""
        if self.choices:
            return value in self.choices
        if not self.is_number or (self.besides is not None and value == self.besides):
            return True
        low = value >= self.least if self.least is not None else value > self.above
        high = value <= self.most if self.most is not None else value < self.below
        return bool(low and high)

    def __str__(self) -> str:
        """The range in words.

        >>> print(Range(least=0, below=1, noun="a share"), "|", Range(least=1, most=64), "|", Range(choices=("a", "b")))
        a share in [0, 1) | at least 1 and at most 64 | a or b
        """
        if self.choices:
            *most, last = self.choices
            return f"{', '.join(most)} or {last}" if most else last
        low = f"[{self.least:.12g}" if self.least is not None else f"({self.above:.12g}"
        high = f"{self.most:.12g}]" if self.most is not None else f"{self.below:.12g})"
        if self.noun:
            words = f"{self.noun} in {low}, {high}"
        else:
            words = f"at least {low[1:]}" if self.least is not None else f"above {low[1:]}"
            words += f" and at most {high[:-1]}" if self.most is not None else f" and below {high[:-1]}"
        return words + (f", or {self.besides:.12g}" if self.besides is not None else "")


def number(
    default: float,
    about: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    besides: float | None = None,
    noun: str = "",
) -> Any:
    """A field that is a number; arguments as of `Range`. An integer without an upper bound must fit an int32."""
    if most is None and below is None:
        assert isinstance(default, int), "a float needs an upper bound"
        most = MOST
    return _field(default, Range(about, least, above, most, below, besides, (), noun))


def share(default: float, about: str, *, above: float | None = None, below: float | None = None) -> Any:
    """A field that is a number from 0 to 1; `above` and `below` leave an end out."""
    least, most = (0 if above is None else None), (1 if below is None else None)
    return number(default, about, least=least, above=above, most=most, below=below, noun="a share")


def choice(default: str, about: str, *choices: str) -> Any:
    """A field that is one of a few words."""
    return _field(default, Range(about, choices=choices))


def text(default: str, about: str) -> Any:
    """A field that is any text."""
    return _field(default, Range(about))


def flag(default: bool, about: str) -> Any:
    """A field that is on or off."""
    return _field(default, Range(about))


def _field(default: Any, range_: Range) -> Any:
    return dataclasses.field(default=default, metadata={KEY: range_})


def require(ok: bool, field: str, expected: str, got: object) -> None:
    """Raises a ValueError that names a field of the configuration, unless all is well.

    Raises:
      ValueError: what was expected of the field, and what was got.
    """
    if not ok:
        raise ValueError(f"config.{field}: expected {expected}, got {shown(got)}")


def shown(value: object) -> str:
    """A value as it stands in a message of one line.

    >>> shown(10**5000), shown("ab")
    ('a number of 5000 digits or so', "'ab'")
    """
    if isinstance(value, int) and abs(value) >= LARGE:
        return f"a number of {math.floor(value.bit_length() * math.log10(2))} digits or so"
    written = repr(value)
    return written if len(written) <= LONGEST else f"{written[:LONGEST]}…"


def check(section: Any, path: str) -> None:
    """Checks every field of a section of the configuration against its range.

    Args:
      section: a dataclass.
      path: of the section, such as "model".

    Raises:
      ValueError: the first field that lies outside of its range.
    """
    for name, range_ in described(section):
        value = getattr(section, name)
        if not range_.holds(value):
            require(False, f"{path}.{name}", str(range_), value)


def described(section: Any) -> Iterator[tuple[str, Range]]:
    """Name and range of every field of a section (a dataclass, or one of its instances) that was declared here."""
    for field in dataclasses.fields(section):
        if KEY in field.metadata:
            yield field.name, field.metadata[KEY]


def build(cls: type, mapping: Any, path: str) -> Any:
    """Makes a dataclass, and those inside it, of a nested mapping.

    Args:
      cls: the dataclass.
      mapping: values by name; those that are left out take their defaults.
      path: of the section, for messages.

    Raises:
      ValueError: unknown key (with the nearest known one), wrong type, or value out of range.
    """
    if not isinstance(mapping, dict):
        raise ValueError(f"{path}: expected a section with keys, got {shown(mapping)}")
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(hints)}"
            raise ValueError(f"{path}.{key}: unknown key; {known}")
    return cls(**{key: _convert(hints[key], value, f"{path}.{key}") for key, value in mapping.items()})


def _convert(wanted: type, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(wanted):
        return build(wanted, value, path)
    if wanted is float and type(value) is int and abs(value) < LARGE:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"{path}: expected {wanted.__name__}, got {shown(value)}")
    return value
