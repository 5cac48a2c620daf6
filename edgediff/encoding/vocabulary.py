"""A stock CLIPTokenizer that knows the words of given captions (byte pair encoding, Sennrich et al. 2016).

The trainer that transformers brings decides ties by chance, so that two trainings of one recipe would number their
words differently and could not go on from each other's states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from edgediff.errors import MissingExtraError

TOKENS = 77  # that CLIP reads of a caption, and that exported graphs count on
MOST_MERGES = 2048  # common words of many captions; the others are spelt
START, END, LAST = "<|startoftext|>", "<|endoftext|>", "</w>"


def tokenizer(captions: Iterable[str]) -> Any:
    """Return the tokenizer; every word that it does not know is spelt in bytes, of which it knows all.

    Numbered as CLIP's own: bytes, bytes that end a word, merged pairs, the beginning and the end.

    Raises: MissingExtraError without transformers.
    """
    try:
        from tokenizers.pre_tokenizers import ByteLevel
        from transformers import CLIPTokenizer
    except ImportError as error:
        raise MissingExtraError("transformers", "text", "a text encoder") from error
    reader = CLIPTokenizer().backend_tokenizer
    words: Counter[str] = Counter()
    for caption, times in Counter(captions).items():
        for word, _ in reader.pre_tokenizer.pre_tokenize_str(reader.normalizer.normalize_str(caption)):
            words[word] += times
    pairs, alphabet = merges(words), sorted(ByteLevel.alphabet())
    known = [*alphabet, *(byte + LAST for byte in alphabet), *map("".join, pairs), START, END]
    numbers = {word: number for number, word in enumerate(dict.fromkeys(known))}
    declared: Any = pairs  # which says that it takes strings, and reads pairs
    return CLIPTokenizer(vocab=numbers, merges=declared, model_max_length=TOKENS)


def merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Return the pairs of symbols to join, in order: always the most frequent one; of equals, the first by name."""
    spelt = {word: [*word[:-1], word[-1] + LAST] for word in words}
    found: list[tuple[str, str]] = []
    while len(found) < MOST_MERGES:
        counts: Counter[tuple[str, str]] = Counter()
        for word, symbols in spelt.items():
            for pair in pairwise(symbols):
                counts[pair] += words[word]
        if not counts:  # every word is one symbol
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        found.append(best)
        spelt = {word: _joined(symbols, best) for word, symbols in spelt.items()}
    return found


def _joined(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined
