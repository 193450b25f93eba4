"""Fields of the configuration: default, range and meaning of each in one declaration.

A field is declared by `number`, `share`, `choice`, `text` or `flag`. The declaration is stored as the field's metadata,
from which values are checked, and help and reference pages are made (`described`).
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import typing
from collections.abc import Iterator
from typing import Any, ClassVar

LARGEST_INT = 2**31 - 1  # default upper bound of integers: the largest int32
KEY = "range"  # key of the declaration in a field's metadata
LARGEST_FLOAT = 10**300  # integers from here on are not converted to float
LONGEST_VALUE = 80  # characters of a value in a message
Relation = tuple[bool, str, object, object]


@dataclasses.dataclass(frozen=True)
class Range:
    """The declaration of a field: its meaning, and the values that it may have.

    Attributes:
      about: meaning of the field, in one line.
      least, above: inclusive or exclusive lower bound; None: no such bound.
      most, below: inclusive or exclusive upper bound.
      besides: a value outside of the bounds that has a special meaning.
      choices: the values of a field that is not a number.
      noun: the word for the value in messages.
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
        """Return whether a value is in the range; NaN is in none."""
        if self.choices:
            return value in self.choices
        if not self.is_number or (self.besides is not None and value == self.besides):
            return True
        low = value >= self.least if self.least is not None else value > self.above
        high = value <= self.most if self.most is not None else value < self.below
        return bool(low and high)

    def __str__(self) -> str:
        """Return the range in words.

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
    """Declare a field that is a number; arguments as in `Range`. An unbounded integer must fit an int32."""
    if most is None and below is None:
        assert isinstance(default, int), "a float needs an upper bound"
        most = LARGEST_INT
    return _field(default, Range(about, least, above, most, below, besides, (), noun))


def share(default: float, about: str, *, above: float | None = None, below: float | None = None) -> Any:
    """Declare a field that is a number from 0 to 1; `above` and `below` exclude an end."""
    least, most = (0 if above is None else None), (1 if below is None else None)
    return number(default, about, least=least, above=above, most=most, below=below, noun="a share")


def choice(default: str, about: str, *choices: str) -> Any:
    """Declare a field that is one of a few words."""
    return _field(default, Range(about, choices=choices))


def text(default: str, about: str) -> Any:
    """Declare a field that is any text."""
    return _field(default, Range(about))


def flag(default: bool, about: str) -> Any:
    """Declare a field that is on or off."""
    return _field(default, Range(about))


def _field(default: Any, range_: Range) -> Any:
    return dataclasses.field(default=default, metadata={KEY: range_})


def require(ok: bool, field: str, expected: object, got: object) -> None:
    """Raise a ValueError that names a field of the configuration, unless `ok`.

    Raises:
      ValueError: with what was expected of the field, and what was got.
    """
    if not ok:
        raise ValueError(f"config.{field}: expected {expected}, got {shown(got)}")


def shown(value: object) -> str:
    """Return a value as it is shown in a message of one line.

    >>> shown(10**5000), shown("ab")
    ('a number of 5000 digits or so', "'ab'")
    """
    if isinstance(value, int) and abs(value) >= LARGEST_FLOAT:
        return f"a number of {math.floor(value.bit_length() * math.log10(2))} digits or so"
    written = repr(value)
    return written if len(written) <= LONGEST_VALUE else f"{written[:LONGEST_VALUE]}…"


class ConfigSection:
    """Base of the sections of the configuration, frozen dataclasses that check themselves when they are made.

    Raises:
      ValueError: with the first field outside of its range, or the first relation that does not hold.
    """

    _path: ClassVar[str] = ""

    def __init_subclass__(cls, path: str = "") -> None:
        cls._path = path

    def __post_init__(self) -> None:
        ranges = ((name, range_, getattr(self, name)) for name, range_ in described(self))
        checks = ((range_.holds(value), name, range_, value) for name, range_, value in ranges)
        for ok, field, expected, got in itertools.chain(checks, self._relations()):
            require(ok, ".".join(filter(None, (self._path, field))), expected, got)

    def _relations(self) -> Iterator[Relation]:
        """Yield the conditions on more than one field: whether it holds, its field, what is expected, what was got."""
        return iter(())


def described(section: Any) -> Iterator[tuple[str, Range]]:
    """Yield name and range of every declared field of a section (a dataclass, or an instance of one)."""
    for field in dataclasses.fields(section):
        if KEY in field.metadata:
            yield field.name, field.metadata[KEY]


def build(cls: type, mapping: Any, path: str) -> Any:
    """Build a dataclass, and those inside it, from a nested mapping.

    Args:
      cls: the dataclass.
      mapping: values by name; missing ones take their defaults.
      path: path of the section, for messages.

    Raises:
      ValueError: for an unknown key (names the nearest known one), a wrong type, or a value out of range.
    """
    if not isinstance(mapping, dict):
        raise ValueError(f"{path}: expected a section with keys, got {shown(mapping)}")
    types = typing.get_type_hints(cls)
    hints = {field.name: types[field.name] for field in dataclasses.fields(cls)}
    for key in mapping:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(hints)}"
            raise ValueError(f"{path}.{key}: unknown key; {known}")
    return cls(**{key: _convert(hints[key], value, f"{path}.{key}") for key, value in mapping.items()})


def _convert(wanted: type, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(wanted):
        return build(wanted, value, path)
    if wanted is float and type(value) is int and abs(value) < LARGEST_FLOAT:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"{path}: expected {wanted.__name__}, got {shown(value)}")
    return value
