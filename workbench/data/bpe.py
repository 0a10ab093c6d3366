"""Byte-pair encoding: frequent strings of bytes as tokens (arXiv:1508.07909), through `tokenizers`.

Any text has ids and gets back every byte, invalid UTF-8 included: all 256 bytes are tokens, and
nothing in a text is special. Ids: the bytes, then tokens as they were joined, frequent ones first;
those of a tokenizer.json are its own.

A text is encoded line by line, each with its newline; a line of more than 64 KiB is cut at its
first blank from there on, or after 128 KiB without one. So ids never depend on the blocks in which
a text is read, nor on who reads them.

As measured on English: about 4 MB/s on a core to encode; to learn 16,384 tokens from all that is
read of a text takes 10 to 15 s and less than 200 MB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.data.vocabulary import Vocabulary, printable
from workbench.errors import ConfigError, DataError, DataMissing

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

MAX_SIZE, MIN_COUNT = 16_384, 2
UNIT = re.compile(rb"[^\n]{,65535}+\n|[^\n]{65536}[^\n ]{,65536}+\n?[\x80-\xbf]{,3}|[^\n]+")
"""what is encoded by itself"""
PART_BYTES = 256 << 10
"""of a text that are read at one place to learn from"""
LEARN_BYTES = 64 << 20
DISTINCT_BYTES = 5 << 20
"""of words; the memory of learning follows them, about 100 bytes for each"""
LONGEST_WORD = 64
"""bytes of a word that learning looks at together: time would grow with their square"""
_TORN = re.compile("([\udc80-\udcff]+)")
# GPT-2's letters for bytes: those of Latin-1 that can be seen stand for themselves
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [value for value in range(0x100) if value not in _SEEN]
BYTE_OF = {chr(value): value for value in _SEEN}
BYTE_OF |= {chr(0x100 + place): value for place, value in enumerate(_HIDDEN)}
_PLAIN = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PROBE = "It's  a\ttest,\r\n \n\n  No. 12345 naïve e\u0301 字 \U0001f600\u3000<unk> x\n".encode()


def units(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same text in blocks that tear no unit."""
    held = b""
    for block in blocks:
        found = UNIT.findall(held + block)
        # the end of a line ends a unit; whatever else comes last may go on
        held = found.pop() if found and not found[-1].endswith(b"\n") else b""
        if found:
            yield b"".join(found)
    if held:
        yield held


class BpeVocabulary(Vocabulary):
    """Tokens of one byte-level tokenizer.

    Args:
        tokenizer: as `tokenizers` writes it to JSON; `load` says what is accepted.
    """

    level = "bpe"

    def __init__(self, tokenizer: Mapping[str, Any]) -> None:
        self._json = tokenizer
        self.size = max(tokenizer["model"]["vocab"].values()) + 1

    @classmethod
    def learn(
        cls, blocks: Iterable[bytes], max_size: int = MAX_SIZE, min_count: int = MIN_COUNT
    ) -> BpeVocabulary:
        """Join the most frequent pair of tokens, again and again.

        Reads no more than 64 MiB, or distinct words of 5 MiB, because memory follows these: at most
        about 0.7 GB, for a text without blanks.

        Args:
            blocks: training text, a large one in an order that shows all parts of it early.
            max_size: tokens, the 256 bytes among them.
            min_count: of a pair that is joined.
        """
        if max_size < 256:
            raise ConfigError(f"max_size: got {max_size}, expected at least 256, the bytes")
        lib = _library()
        tokenizer = lib.Tokenizer(lib.models.BPE())
        plain = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
        short = lib.pre_tokenizers.FixedLength(LONGEST_WORD)
        tokenizer.pre_tokenizer = lib.pre_tokenizers.Sequence([plain, short])
        trainer = lib.trainers.BpeTrainer(
            vocab_size=max_size,
            min_frequency=min_count,
            initial_alphabet=lib.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_enough(blocks), trainer)
        return cls(_bare(json.loads(tokenizer.to_str()) | {"pre_tokenizer": _PLAIN}))

    @classmethod
    def load(cls, path: Path) -> BpeVocabulary:
        """A tokenizer.json of the user's, of which nothing is executed.

        Its model and its pre-tokenizer count. Special and other added tokens are left out, because
        they would be taken for text; so are dropout, truncation and padding.

        Raises:
            DataMissing: there is no such file.
            DataError: it is no byte-level BPE tokenizer that keeps a text as it is.
        """
        try:
            data = json.loads(path.read_bytes())
        except OSError as error:
            raise DataMissing(
                f"{path}: got '{error.strerror}', expected a tokenizer.json"
            ) from None
        except (ValueError, RecursionError) as error:
            raise _unfit(path, f"a file that is no JSON ({error})") from None
        if reason := _fault(data):
            raise _unfit(path, reason)
        vocabulary = cls(_bare(data))
        try:
            kept = vocabulary.raw(vocabulary.ids(_PROBE)) == _PROBE
        except DataError as error:
            raise _unfit(path, str(error)) from None
        if not kept:
            raise _unfit(path, "a tokenizer that loses or adds blanks or other characters")
        return vocabulary

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        try:
            return _library().Tokenizer.from_str(json.dumps(self._json))
        # the library has no exceptions of its own
        except Exception as error:
            if isinstance(error, ConfigError):
                raise
            raise DataError(f"a tokenizer that does not load ({error})") from None

    @cached_property
    def _bytes(self) -> list[bytes]:
        """What each id stands for."""
        table = [b""] * self.size
        for token, index in self._json["model"]["vocab"].items():
            known = all(letter in BYTE_OF for letter in token)
            table[index] = bytes(map(BYTE_OF.__getitem__, token)) if known else token.encode()
        return table

    @cached_property
    def _id_of_byte(self) -> dict[str, int]:
        """Ids of bytes, named as `surrogateescape` spells those that are no UTF-8."""
        vocab = self._json["model"]["vocab"]
        return {chr(0xDC00 + value): vocab[letter] for letter, value in BYTE_OF.items()}

    def ids(self, block: bytes | str) -> np.ndarray:
        """Ids of a block that tears no unit (half surrogates become the bytes that they are)."""
        data = block.encode("utf-8", "surrogatepass") if isinstance(block, str) else block
        encode, byte = self._tokenizer.encode, self._id_of_byte.__getitem__
        found: list[int] = []
        for unit in UNIT.findall(data):
            for place, part in enumerate(_TORN.split(unit.decode("utf-8", "surrogateescape"))):
                found += map(byte, part) if place % 2 else encode(part).ids
        return np.array(found, dtype=np.int32)

    def raw(self, ids: Tensor | np.ndarray) -> bytes:
        return b"".join(map(self._bytes.__getitem__, ids.tolist()))

    def decode(self, ids: Tensor) -> str:
        return self.raw(ids).decode("utf-8", errors="replace")

    def symbol(self, index: int) -> str:
        return "".join(map(printable, self._bytes[index].decode("utf-8", "backslashreplace")))

    def symbols(self) -> dict[str, Any]:
        return {"tokenizer": self._json}


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "level: got bpe, which needs the library tokenizers, and it is not installed. Run "
            "pip install 'workbench[text]'"
        ) from None
    return tokenizers


def _enough(blocks: Iterable[bytes]) -> Iterator[str]:
    seen: set[bytes] = set()
    n_bytes = distinct = 0
    for block in blocks:
        for unit in UNIT.findall(block):
            yield unit.decode("utf-8", "ignore")
        new = set(block.split()) - seen
        seen |= new
        n_bytes, distinct = n_bytes + len(block), distinct + sum(map(len, new))
        if n_bytes >= LEARN_BYTES or distinct >= DISTINCT_BYTES:
            return


def _bare(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """What decides about the ids of plain text."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": tokenizer["pre_tokenizer"],
        "post_processor": None,
        "decoder": None,
        "model": {**tokenizer["model"], "dropout": None},
    }


def _fault(data: Any) -> str:
    """Why a tokenizer does not keep every text as it is; "" where nothing is known against it."""
    model = data.get("model") if isinstance(data, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if model is None or not isinstance(model, dict):
        return "JSON that is no tokenizer"
    kind = model.get("type", "BPE" if "merges" in model else "unnamed")
    if kind != "BPE":
        return f"a {kind} model"
    if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
        return "a BPE model without a table of tokens"
    if set(vocab.values()) - set(range(2 * len(vocab))) or len({*vocab.values()}) < len(vocab):
        return "a table of tokens whose ids are not whole numbers from 0 on"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        # the library panics at some of them
        return "a BPE model that marks the parts of words"
    if data.get("normalizer"):
        return "a tokenizer with a normalizer, which changes the text before it is encoded"
    # it may be one of several stages; whether they are sound is seen when they are loaded
    if '"type": "ByteLevel"' not in json.dumps(data.get("pre_tokenizer")):
        return "a BPE model that is not at byte level (its pre-tokenizer is not ByteLevel)"
    if lacking := [value for letter, value in BYTE_OF.items() if letter not in vocab]:
        return f"a BPE model without tokens for {len(lacking)} of the 256 bytes"
    return ""


def _unfit(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: got {reason}, expected the tokenizer.json of a byte-level BPE tokenizer, such as "
        "GPT-2's, or one that keeps a text as it is. Leave the file out, and one is learned."
    )
