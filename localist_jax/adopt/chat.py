"""Chat templates: how a model that was trained on conversations wants a question to be written.

A template is a program (in Jinja) that comes with the checkpoint: it runs in a sandbox. It writes special tokens
around what people say; what they say themselves is characters, even where it looks like a special token.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from localist_jax.adopt.load import ORIGIN
from localist_jax.data import Tokenizer
from localist_jax.training.run import Run

TEMPLATE, SETTINGS = "chat_template.jinja", ("tokenizer_config.json", "special_tokens_map.json")
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclasses.dataclass(frozen=True)
class Chat:
    """A chat template.

    Attributes:
      template: in Jinja.
      names: the special tokens that it may ask for, such as {"bos_token": "<s>"}.
    """

    template: str
    names: dict[str, str]

    @classmethod
    def of(cls, run: Run) -> Chat:
        """The template that came with the checkpoint of an adopted run.

        Raises:
          ValueError: there is none.
        """
        return cls.read(run.workdir / ORIGIN)

    @classmethod
    def read(cls, folder: Path) -> Chat:
        """The template of a checkpoint's folder: chat_template.jinja, or that in tokenizer_config.json.

        Raises:
          ValueError: there is none, or a file is damaged.
        """
        settings: dict[str, Any] = {}
        for name in reversed(SETTINGS):
            if (folder / name).is_file():
                try:
                    settings |= json.loads((folder / name).read_text(encoding="utf-8"))
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{folder / name}: not an object in JSON; copy it again") from error
        template = settings.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {x.get("name"): x.get("template") for x in template if isinstance(x, dict)}
            template = named.get("default")
        if (folder / TEMPLATE).is_file():
            template = (folder / TEMPLATE).read_text(encoding="utf-8")
        if not isinstance(template, str) or not template:
            raise ValueError(
                f"{folder.parent}: this model came without a chat template; "
                'give it a text to continue instead: localist generate RUN "text"'
            )
        given = {role: settings.get(role) for role in ROLES}
        names = {role: x.get("content") if isinstance(x, dict) else x for role, x in given.items()}
        return cls(template, {role: name for role, name in names.items() if isinstance(name, str)})

    def ids(self, tokenizer: Tokenizer, question: str, system: str = "") -> list[int]:
        """Token ids of a question as the template writes it, up to where the answer begins; a BOS is among them.

        Args:
          tokenizer: of the model.
          question: what the user says.
          system: what the model is told beforehand; empty: what the template says.

        Raises:
          ValueError: an empty question, or a template that fails, or changes what is said past recognition.
        """
        if not question.strip():
            raise ValueError("chat: the question is empty")
        messages = [{"role": "system", "content": system}] if system else []
        return tokenizer.encode_written(
            self.pieces([*messages, {"role": "user", "content": question}])
        ).tolist()

    def pieces(self, messages: Sequence[dict[str, str]]) -> list[tuple[str, bool]]:
        """The conversation as the template writes it, cut by who wrote what.

        The template is run twice: with names that nobody can guess in the place of what is said, which shows what it
        writes itself, and with what is said.

        Returns:
          Texts, each with whether the template wrote it.

        Raises:
          ValueError: as `ids`.
        """
        now = datetime.datetime.now()
        keys = [f"x{secrets.token_hex(16)}" for _ in messages]
        outline = self._written(
            [message | {"content": key} for message, key in zip(messages, keys, strict=True)], now
        )
        written = self._written(messages, now)
        parts = re.split(f"({'|'.join(keys)})", outline)
        unsaid = [m["role"] for m, key in zip(messages, keys, strict=True) if key not in parts]
        if unsaid:
            raise ValueError(f"chat template: it leaves out the {unsaid[0]} message")
        said = dict(zip(keys, (message["content"] for message in messages), strict=True))
        texts = [said.get(part, part) for part in parts]
        if "".join(texts) != written:  # it strips what is said, say
            texts = _aligned([None if part in said else part for part in parts], written)
        return [(text, part not in said) for text, part in zip(texts, parts, strict=True) if text]

    def _written(self, messages: Sequence[dict[str, str]], now: datetime.datetime) -> str:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _refuse, "strftime_now": now.strftime}
        try:
            return environment.from_string(self.template).render(
                messages=list(messages), add_generation_prompt=True, tools=None, documents=None, **self.names
            )
        except Exception as error:  # it is a program of others: anything may go wrong in it
            raise ValueError(f"chat template: {' '.join(str(error).split())[:200]}") from error


class _Generation(Extension):
    """The tag that marks what the model says, for training: here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (as the class it extends has it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _aligned(parts: Sequence[str | None], written: str) -> list[str]:
    """Return the text in `written` for each part; None in `parts` stands for an unknown text."""
    found = []
    for anything in ("(.*?)", "(.*)"):  # the first place, and the last: there may be but one
        pattern = "".join(anything if part is None else f"({re.escape(part)})" for part in parts)
        match = re.fullmatch(pattern, written, re.DOTALL)
        found.append(list(match.groups()) if match else None)
    if found[0] is None or found[0] != found[1]:
        raise ValueError(
            "chat template: it changes what is said so that the template's own tokens cannot be told from typed ones; "
            "say it in other words"
        )
    return found[0]


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Serialise as `transformers` does; Jinja's own filter escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
