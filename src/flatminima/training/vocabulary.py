"""A tokenizer for a text model that starts from random weights and so brings none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from flatminima.errors import require

BYTES = 257
"""Entries of the vocabulary of `byte_tokenizer`."""

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def make_tokenizer(texts: Iterable[str], size: int, longest: int) -> Any:
    """A WordPiece tokenizer of whole words, and of single characters for all other words.

    The vocabulary is the special tokens, the characters, then the most frequent words, equally
    frequent ones in alphabetical order. It is the same whenever it is made of the same texts: a
    resumed run makes its tokenizer again and must get the same ids, which the trainers of
    `tokenizers` do not promise (they iterate over hash maps).

    Args:
        texts: Whose words are counted; lower-cased.
        size: Entries of the vocabulary at most.
        longest: Tokens of a text at most.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.
    """
    transformers, tokenizers = require("transformers", "text"), require("tokenizers", "text")
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    splitter = tokenizers.pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in words for character in word})
    pieces = [*SPECIAL.values(), *characters, *(f"##{character}" for character in characters)]
    frequent = sorted((-count, word) for word, count in words.items() if len(word) > 1)
    pieces = (pieces + [word for _, word in frequent])[:size]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"])
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    start, end = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=longest, **SPECIAL
    )


def byte_tokenizer(longest: int) -> Any:
    """A tokenizer whose tokens are the 256 bytes of UTF-8 and an end of text, which also pads.

    It depends on no text, and gives back every text exactly.

    Args:
        longest: Tokens of a text at most.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.
    """
    transformers, tokenizers = require("transformers", "text"), require("tokenizers", "text")
    end = "<|endoftext|>"
    pieces = [*sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), end]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=longest,
        eos_token=end,
        pad_token=end,
        clean_up_tokenization_spaces=False,
    )
