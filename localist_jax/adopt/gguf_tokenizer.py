"""A GGUF file's tokenizer as a tokenizer.json: vocabulary, merges, how a text is cut, special tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

CONTROL, ADDED, UNUSED = 3, 4, 5  # types of tokens; 1 is a piece of text
SPECIALS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA3 = WORDS + r"|\p{N}{1,3}" + REST
QWEN2 = WORDS + r"|\p{N}" + REST
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _split(pattern: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    def make() -> pre_tokenizers.PreTokenizer:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        return pre_tokenizers.Sequence(
            [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )

    return make


KINDS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {  # by `tokenizer.ggml.pre`
    **dict.fromkeys(("gpt-2", "default"), _gpt2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), _digits),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe"), _split(LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _split(QWEN2)),
    "tekken": _split(TEKKEN),
}
WHOLE_FIRST = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a piece that is a token is never merged
OPENED = ("llama-bpe", "llama3", "llama-v3", "tekken")  # with BOS, where the file does not say
COMPOSED = ("qwen2", "deepseek-r1-qwen")  # text is brought into Unicode's form NFC first


def specials_of(metadata: dict[str, Any]) -> dict[str, str]:
    """The special tokens that have a role, as tokenizer_config.json names them."""
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    found = {}
    for role, name in SPECIALS.items():
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            found[role] = tokens[number]
    return found


def tokenizer_json(metadata: dict[str, Any]) -> str:
    """The tokenizer that a file's metadata describe, in the tokenizer.json format of Hugging Face.

    Raises:
      ValueError: a kind of tokenizer or of cutting that is not supported, or metadata that do not fit together.
    """
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"tokenizer.ggml.model: expected gpt2 or llama, got {kind!r}; not supported")
    if not isinstance(tokens, list) or not tokens:
        raise ValueError("tokenizer.ggml.tokens: missing; convert the checkpoint anew")
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(
            f"tokenizer.ggml.token_type: expected one per token, got {len(types)} for {len(tokens)}"
        )
    while types and types[-1] == UNUSED:  # rows of the embedding that stand for nothing
        tokens, types = tokens[:-1], types[:-1]
    twice = [token for token, times in Counter(tokens).items() if times > 1]
    if twice:
        raise ValueError(f"tokenizer.ggml.tokens: {twice[0]!r} stands there twice")
    vocab = {token: i for i, token in enumerate(tokens)}
    make = _byte_level if kind == "gpt2" else _sentence_piece
    try:
        inner, opened = make(metadata, vocab)
    except ValueError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"tokenizer: {' '.join(str(error).split())[:120]}") from error
    marked = [(token, t) for token, t in zip(tokens, types, strict=True) if t in (CONTROL, ADDED)]
    inner.add_special_tokens([AddedToken(token, normalized=False) for token, t in marked if t == CONTROL])
    inner.add_tokens([AddedToken(token, normalized=False) for token, t in marked if t == ADDED])
    if metadata.get("tokenizer.ggml.add_eos_token"):
        raise ValueError("tokenizer.ggml.add_eos_token: expected False: a text is opened, not closed")
    bos = specials_of(metadata).get("bos_token")
    if metadata.get("tokenizer.ggml.add_bos_token", opened) and bos is not None:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
        )
    return inner.to_str()


def _byte_level(metadata: dict[str, Any], vocab: dict[str, int]) -> tuple[tokenizers.Tokenizer, bool]:
    cut = metadata.get("tokenizer.ggml.pre", "default")
    if cut not in KINDS:
        raise ValueError(
            f"tokenizer.ggml.pre: expected one of {', '.join(KINDS)}, got {cut!r}; not supported"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or []]
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=cut in WHOLE_FIRST))
    inner.pre_tokenizer = KINDS[cut]()
    inner.decoder = decoders.ByteLevel()
    if cut in COMPOSED:
        inner.normalizer = normalizers.NFC()
    return inner, cut in OPENED


def _sentence_piece(metadata: dict[str, Any], vocab: dict[str, int]) -> tuple[tokenizers.Tokenizer, bool]:
    unknown = specials_of(metadata).get("unk_token")
    merges = _merges(vocab, metadata.get("tokenizer.ggml.scores") or [])
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        parts.append(decoders.Strip(" ", 1, 0))
    else:
        inner.normalizer = spaces
    inner.decoder = decoders.Sequence(parts)
    return inner, True


def _merges(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Merges of a vocabulary that has scores instead: every way to make a token of two, the best tokens first."""
    if len(scores) < len(vocab):
        raise ValueError("tokenizer.ggml.scores: expected one per token")
    ways = [
        (-scores[number], number, token[:cut], token[cut:])
        for token, number in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    ways.sort(key=lambda way: (way[0], way[1], vocab[way[2]], vocab[way[3]]))
    return [(left, right) for _, _, left, right in ways]
