"""Actions and proprioception as tokens of the language model's own vocabulary (ReconVLA, papers/reconvla/notes.md).

A number in [-1, 1] falls into one of 256 bins, and bin d (1..256) is token `vocab_size - d`: the last 256 ids of the
vocabulary are overwritten, no token is added. Decoding gives the centre of the bin. The rule is the paper's code at
OpenHelix-Team/ReconVLA @047ccd9 (`action_tokenizer.py`); what differs is that NaN and foreign ids are errors here
(upstream turns NaN into +0.996 and decodes any id in silence).
"""
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from repro.machine import UserError

BINS = 256
EDGES = np.linspace(-1.0, 1.0, BINS)               # 256 edges: np.digitize gives 1..256
CENTRES = ((EDGES[:-1] + EDGES[1:]) / 2).astype(np.float32)  # 255 centres: the value 1.0 alone has bin 256 and decodes like bin 255
BIN_VALUES = np.concatenate([CENTRES, [1.0]]).astype(np.float32)  # (256,) the value each bin stands for, ascending


@dataclass(frozen=True)
class ActionTokens:
    """Numbers in [-1, 1] <-> the last 256 ids of a vocabulary; any shape (chunk, dimension, batch)."""

    vocab_size: int  # of the base tokenizer: 151643 for Qwen2

    @property
    def first(self) -> int:
        """The lowest action id; ids `first .. vocab_size - 1` are the slots, in descending order of value."""
        return self.vocab_size - BINS

    def encode(self, values: Float[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Token ids of `values`, clipped to [-1, 1]. NaN or infinity is an error."""
        values = np.asarray(values)
        if not np.isfinite(values).all():
            where = np.argwhere(~np.isfinite(values))[0].tolist()
            raise UserError("an action or state to be written as tokens is not finite", expected="numbers in [-1, 1]",
                            found=f"{values[tuple(where)]} at index {where}", next_step="look at that frame of the data, or leave it out")
        return self.vocab_size - np.digitize(np.clip(values, -1.0, 1.0), EDGES)

    def decode(self, ids: Int[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Bin centres (float32) of token ids. An id outside the slots is an error."""
        bins = self.vocab_size - np.asarray(ids)
        if bins.size and (bins.min() < 1 or bins.max() > BINS):
            foreign = np.asarray(ids)[(bins < 1) | (bins > BINS)].ravel()
            raise UserError("token ids that are no action tokens cannot be decoded", found=foreign[:5].tolist(),
                            expected=f"ids {self.first} .. {self.vocab_size - 1}",
                            next_step="compare the tokenizer's size with the one the model was trained with")
        return CENTRES[np.clip(bins - 1, 0, BINS - 2)]


def normalise_state(state: Float[np.ndarray, "*batch s"], mean: Float[np.ndarray, " s"], std: Float[np.ndarray, " s"]
                    ) -> Float[np.ndarray, "*batch s"]:
    """(x - mean) / (std + 1e-5) / 3, clipped to [-1, 1]: three standard deviations fill the range, as upstream."""
    return np.clip((state - mean) / (std + 1e-5) / 3.0, -1.0, 1.0).astype(np.float32)
