"""Masks against the independent checker, token by token; and folding against the checker's own."""

import re
import unicodedata

import numpy as np
import pytest

from localist_jax.rules import checker, disguises, parse
from localist_jax.rules.folding import enclosed, fold, fold_character, lookalikes, named
from localist_jax.rules.patterns import PatternEngine
from localist_jax.rules.program import RuleProgram
from localist_jax.rules.request import Request

EVERY = [chr(i) for i in range(0x80, 0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Co")]
# A Latin letter, small, capital or small capital, with something to it or in another form; the letter itself.
VARIANT = re.compile(
    r"LATIN (?:(?:SMALL|CAPITAL) )*LETTER (?:SMALL CAPITAL |SCRIPT |INSULAR |DOTLESS |BLACKLETTER |LONG |BARRED )*"
    r"([A-Z])(?: WITH (?!SMALL LETTER|CAPITAL LETTER).*)?"
)
ON_A_SIGN = re.compile(
    r"(?:.*(?:CIRCLED|SQUARED|PARENTHESIZED) LATIN (?:SMALL|CAPITAL)|REGIONAL .*) LETTER ([A-Z])"
)


def variants():
    """Every character that Unicode names as a variant of one Latin letter, and the letter."""
    for character in EVERY:
        name = unicodedata.name(character, "")
        if found := VARIANT.fullmatch(name) or ON_A_SIGN.fullmatch(name):
            yield character, found[1].lower()


def test_every_variant_of_a_latin_letter_is_that_letter_in_enforcement_and_in_the_checker():
    found = dict(variants())
    assert len(found) > 900
    assert {found[c] for c in "øɓᴘꜱƙⓟ🅿ꝑʂẝⱡ"} == set("obpskzl") - {"z"}
    assert [(c, fold(c)) for c, letter in found.items() if fold(c) != letter] == []
    assert [(c, checker._normal(c)) for c, letter in found.items() if checker._normal(c) != letter] == []


def test_everything_that_unicode_calls_confusable_with_latin_letters_is_folded():
    """Return confusables from Unicode's table: with marks, as several letters, and between right-to-left marks."""
    wanted = {
        "ꜳ": "aa",
        "ѣ": "b",
        "Ы": "bl",
        "₩": "w",
        "ʪ": "ls",
        "ⅷ": "viii",
        "ס": "o",
        "ө": "o",
        "ꮻ": "o",
        "ᑲ": "b",
    }
    assert {c: fold(c) for c in wanted} == wanted
    table, _ = lookalikes()
    assert len(table) > 1700
    assert [c for c in table if not fold(c).isascii()] == []


def test_two_ways_of_folding_agree_but_for_what_unicodes_table_alone_knows():
    """Enforcement folds whatever the checker folds to ASCII, and more, by Unicode's table and names."""
    differing = {c for c in EVERY if fold_character(c) != checker._normal(c)}
    assert [c for c in differing if checker._normal(c).isascii() and checker._normal(c) != " "] == []
    table, _ = lookalikes()
    known = {*table} | {x.casefold() for x in table}
    assert [
        c
        for c in differing
        if not {*_parts(c)} & known and not any(map(named, _parts(c))) and not enclosed(c)
    ] == []
    assert not differing & {*disguises.TABLE, *disguises.CAPITALS}
    listed = {**disguises.TABLE, **disguises.CAPITALS}
    assert {checker._normal(c) for c in listed} == set(listed.values())


def _parts(character):
    """A character, and what it is made of."""
    return character + unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())


@pytest.mark.parametrize(
    "disguise",
    ["PASSWORD", "pаsswоrd", "ｐａｓｓｗｏｒｄ",
     "passwørd", "ᴘᴀssᴡᴏʀᴅ", "🅿🅰🆂🆂🆆🅾🆁🅳", "⒫⒜⒮⒮⒲⒪⒭⒟", "p̷a̷s̷s̷w̷o̷r̷d̷", "ƥáꜱʂⱳꬽɽđ", "ꮲаѕѕԝоrԁ",
     "𝓹𝓪𝓼𝓼𝔀𝓸𝓻𝓭", "pass\u200bword", "pa\u00adss\u2060word", "pásswörd", "p\u0430ss\ufe0fword"],
)  # fmt: skip
def test_disguises_fold_to_the_word(disguise):
    assert fold(disguise) == "password"


@pytest.mark.parametrize("said", ["passwørd", "ᴘᴀssᴡᴏʀᴅ", "Pᴀꜱꜱᴡøʀđ", "🅿🅰🆂🆂🆆🅾🆁🅳"])
def test_a_disguise_is_neither_written_nor_passed_by_the_checker(vocabulary, tokenizer, said):
    rules = parse("rules: [{id: r, then: {forbid: [password]}}]")
    assert not checker.check("", f"my {said}.", [(0, rules)]).compliant
    assert checker.check("", f"my {said}y.", [(0, rules)]).compliant
    request = Request([], 100, vocabulary.bytes)
    request.adopt(RuleProgram(rules, vocabulary), None)
    *begun, last = tokenizer.encode(f" {said}").tolist()
    for token in begun:
        assert request.allowed()[token], said
        request.add(token)
    assert not request.allowed()[last], said


def test_apostrophes_and_hyphens_of_any_shape_are_the_same():
    rules = parse("rules: [{id: r, then: {forbid: [don't say, sub-let]}}]")
    for said in ("don’t say", "donʼt say", "sub‑let", "sub–let"):
        assert not checker.check("", said, [(0, rules)]).compliant, said
    assert {fold("don’t"), fold("donʼt"), fold("don't")} == {"don't"}


def test_greek_capitals_disguise_latin_ones_and_greek_phrases_are_found_in_capitals(vocabulary, tokenizer):
    assert fold("ΝΟ ΙΝΤΕRΑCΤΙΟΝ ΥΕΤ") == "no interaction yet"
    rules = parse("rules: [{id: r, then: {forbid: [no, νερό, Νίκη υγρή]}}]")
    for said in ("Νο", "ΝO", "νερό", "ΝΕΡΟ", "Νερο", "ΝΙΚΗ ΥΓΡΗ", "Νίκη Υγρή", "νίκη υγρή"):
        assert checker.check("", said, [(0, rules)]).violations, said
        request = Request([], 100, vocabulary.bytes)
        request.adopt(RuleProgram(rules, vocabulary), None)
        *begun, last = tokenizer.encode(said).tolist()
        for token in begun:
            assert request.allowed()[token], said
            request.add(token)
        assert not request.allowed()[last], said


BANS = [
    "forbid: [cat, no interaction, the dog ate]",
    "forbid: [cat*, '*word', 'a']",
    "forbid: ['my password.', 'é', 'sat on']",
    "forbid: [warfarin with, ask your, пароль]",
]
PIECES = ["the", " cat", " ca", "t", " no", " ", "\n", "interaction", " inter", "a", "ction", "pass", "word", ".",
          "\u200b", "а", "é", " my", " ask", " your",
          " warfarin", " with", " the", " dog", " ate", "egory", " sat", " on", "п", "ароль"]  # fmt: skip


REGEXES = {
    "[0-9]{2}": "1", "12[^ab]": "12", "t.c": " t", "é+p": "é", "[а-я]a|x\ufffd": "п", "b+c": "ab",
}  # fmt: skip
SCRAPS = ["1", "2", "12", " t", "c", "a", "ab", "é", "p", "п", "x", "na", " ", "\n", "€", "№"]


@pytest.mark.parametrize(("regex", "beginning"), REGEXES.items())
def test_a_forbidden_expression_masks_exactly_what_the_checker_finds(regex, beginning, vocabulary, tokenizer):
    """Also what the prompt began, and where characters are broken: a reader sees U+FFFD there."""
    rules = parse(f"rules: [{{id: r, then: {{forbid: [{{regex: '{regex}'}}]}}}}]")
    program, engine = RuleProgram(rules, vocabulary), PatternEngine(tokenizer)
    single = {piece: token for token, piece in enumerate(vocabulary.bytes) if len(piece) == 1}
    rng, broken, begun = np.random.default_rng(0), 0, 0
    for _ in range(12):
        prompt = tokenizer.encode("".join([*rng.choice(SCRAPS, 2), beginning])).tolist()
        request = Request(prompt, 1000, vocabulary.bytes)
        request.adopt(program, engine)
        output: list[int] = []
        before = tokenizer.decode(prompt)
        for _ in range(4):
            allowed = request.allowed()
            for token in range(2, vocabulary.size):
                said = tokenizer.decode([*prompt, *output, token])[len(before) :]
                violations = checker.check(before, said, [(0, rules)]).violations
                if violations:
                    assert not allowed[token], (before, said)
                elif not allowed[token]:  # it begins a character, and whatever completes it violates
                    assert said.endswith("\ufffd"), (before, said)
                    assert not _has_a_way_out(vocabulary.bytes[token], before, said[:-1], rules), (
                        before,
                        said,
                    )
                broken += "\ufffd" in said and allowed[token]
                begun += bool(violations) and not checker.check("", said, [(0, rules)]).violations
            written = str(rng.choice(SCRAPS)).encode()[: 1 if rng.random() < 0.3 else None]
            for token in (single[bytes([byte])] for byte in written):
                if request.allowed()[token]:
                    request.add(token)
                    output.append(token)
    assert broken > 20
    assert begun


def _has_a_way_out(piece, before, said, rules):
    """Whether some character that begins as a token ends could stand there."""
    at = next(i for i in range(len(piece) - 1, -1, -1) if piece[i] >= 0xC0)
    begun = (c for c in map(chr, range(0x80, 0x3000)) if c.encode().startswith(piece[at:]))
    return any(not checker.check(before, said + c, [(0, rules)]).violations for c in begun)


@pytest.mark.parametrize("then", BANS)
def test_allowed_is_exactly_what_the_checker_lets_pass(then, vocabulary, tokenizer):
    """Texts of pieces in every order, cut in the middle of characters too: every token of the vocabulary is judged."""
    rules = parse(f"rules: [{{id: r, then: {{{then}}}}}]")
    program = RuleProgram(rules, vocabulary)
    rng = np.random.default_rng(0)
    for _ in range(12):
        prompt = tokenizer.encode("".join(rng.choice(PIECES, 2))).tolist()
        request = Request(prompt, 1000, vocabulary.bytes)
        request.adopt(program, None)
        output: list[int] = []
        for _ in range(4):
            allowed = request.allowed()
            before = tokenizer.decode(prompt)
            for token in range(2, vocabulary.size):
                whole = tokenizer.decode([*prompt, *output, token])
                verdict = checker.check(before, whole[len(before) :], [(0, rules)])
                assert allowed[token] == (not verdict.violations), (whole, tokenizer.token_text(token))
            wanted = tokenizer.encode(str(rng.choice(PIECES))).tolist()
            wanted = (
                [vocabulary.bytes.index(bytes([b])) for b in "é".encode()][:1]
                if rng.random() < 0.2
                else wanted
            )
            for token in wanted:
                if not request.allowed()[token]:
                    break
                request.add(token)
                output.append(token)


CONDITIONS = [
    "warfarin", "{absent: doctor}", "{absent: warfarin}",
    "{present: aspirin, within: 2}", "{absent: aspirin, within: 1}",
    "{present: warfarin, sentence: true}", "{all: [{absent: doctor}, {any: [aspirin, warfarin]}]}",
]  # fmt: skip
WORDS = [" warfarin", " aspirin", " doctor", " doc", "tor", ".", "!", " cat", " no", " interaction", " war", "farin",
         ",", "s"]  # fmt: skip


@pytest.mark.parametrize("when", CONDITIONS)
def test_conditional_bans_never_let_pass_what_the_checker_finds(when, vocabulary, tokenizer):
    text = "concepts: {warfarin: {anchors: [warfarin, war]}, "
    text += "aspirin: {anchors: [aspirin]}, doctor: {anchors: [doctor]}}"
    rules = parse(
        f"{text}\nrules: [{{id: r, when: {when}, then: {{forbid: [cat, no interaction, '*farin']}}}}]"
    )
    program = RuleProgram(rules, vocabulary)
    rng = np.random.default_rng(1)
    refused = passed = 0
    for _ in range(60):
        prompt = tokenizer.encode("".join(rng.choice(WORDS, 2))).tolist()
        request = Request(prompt, 1000, vocabulary.bytes)
        request.adopt(program, None)
        output: list[int] = []
        for word in rng.choice(WORDS, 12):
            for token in tokenizer.encode(str(word)).tolist():
                if request.allowed()[token]:
                    passed += 1
                    request.add(token)
                    output.append(token)
                else:
                    refused += 1
        before = tokenizer.decode(prompt)
        said = tokenizer.decode([*prompt, *output])[len(before) :]
        assert checker.check(before, said, [(0, rules)]).compliant, before + "|" + said
    assert refused > 5
    assert passed > 5


@pytest.mark.parametrize(
    ("rule", "prompt", "written", "then"),
    [
        ("forbid: [no cat]", "", " no ", " cat"),  # white space swallows white space
        ("forbid: [no cat]", "", " no\n", " cat"),
        ("forbid: [cat]", "c", "", "at"),  # begun in the prompt
        ("forbid: [cat]", "", " c\u200ba", "t"),
        ("absent", "", " ca", "t"),  # the word at the end may become another
    ],
)
def test_particular_traps(rule, prompt, written, then, vocabulary, tokenizer):
    text = "concepts: {war: {anchors: [ca]}}\n"
    if rule == "absent":
        text += "rules: [{id: r, when: {absent: war}, then: {forbid: ['*t']}}]"
    else:
        text += f"rules: [{{id: r, then: {{{rule}}}}}]"
    rules = parse(text)
    request = Request(tokenizer.encode(prompt).tolist(), 100, vocabulary.bytes)
    request.adopt(RuleProgram(rules, vocabulary), None)
    for token in tokenizer.encode(written).tolist():
        assert request.allowed()[token]
        request.add(token)
    (last,) = tokenizer.encode(then).tolist()
    assert not request.allowed()[last]
    assert not checker.check(prompt, written + then, [(0, rules)]).compliant
