"""A word-level tokenizer for the tiny models: offline, deterministic, and small enough to lie inside a checkpoint's config.

The full-size models use their backbone's own tokenizer; this one exists so that nothing has to be downloaded.
"""
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

PAD, UNKNOWN = 0, 4  # id 0 fills short instructions; ids 1..4 stand for unseen words, chosen by a checksum of the word


def split(instruction: str) -> list[str]:
    """Lower-case words and digits of an instruction, in order."""
    return re.findall(r"[a-z]+|\d", instruction.lower())


def vocabulary(instructions: Iterable[str]) -> tuple[str, ...]:
    """The distinct words of the training instructions, sorted."""
    return tuple(sorted({word for instruction in instructions for word in split(instruction)}))


@dataclass(frozen=True)
class Words:
    """Ids of instructions: 0 padding, 1..4 unseen words, then `words` in their order."""

    words: tuple[str, ...]
    length: int  # every instruction becomes this many ids: longer ones lose their end, shorter ones are filled with 0

    @property
    def size(self) -> int:
        return 1 + UNKNOWN + len(self.words)

    def encode(self, instructions: list[str]) -> Int[np.ndarray, "b length"]:
        index = {word: 1 + UNKNOWN + i for i, word in enumerate(self.words)}
        ids = np.full((len(instructions), self.length), PAD, np.int64)
        for row, instruction in zip(ids, instructions, strict=True):
            found = [index.get(word, 1 + zlib.crc32(word.encode()) % UNKNOWN) for word in split(instruction)][: self.length]
            row[: len(found)] = found
        return ids
