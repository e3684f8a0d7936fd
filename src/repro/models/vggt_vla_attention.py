"""Where VGGT-VLA looks: attention of action queries, or of instruction words, to image patches.

    with record(model, "queries") as maps:          # or "words"
        model.act(observations, instructions)
    maps.layers()                                   # (B, layers, heads, queries, image tokens)

Queries read features *after* the backbone, where a patch's feature also holds what it read from others. Words read patches in the language
adapter (fusion="cross") and in the backbone's global, or the graph's, attention; the layers stand in that order. Padding words are left out
by weight: their rows are zeros. `attention.attention_of(model, ...)` gives the same in the form that its maps and numbers take.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from repro.machine import UserError

SOURCES = ("queries", "words")


class Maps:
    """What a block recorded."""

    def __init__(self, modules: list, rows: list[slice], columns: slice):
        self.modules, self.rows, self.columns = modules, rows, columns

    def layers(self) -> np.ndarray:
        """float32 (B, layers, heads, queries, image tokens), weights as the softmax gave them; of one call of the model."""
        counts = {len(module.record or ()) for module in self.modules}
        if counts != {1}:
            raise UserError("one block records one call of the model", "act() once inside `with record(model)`", f"{max(counts)} calls")
        pairs = zip(self.modules, self.rows, strict=True)
        return torch.stack([module.record[0][:, :, rows, self.columns] for module, rows in pairs], dim=1).numpy()


def modules_of(model, source: str) -> tuple[list, list[slice]]:
    """The attention modules whose weights go from `source` to image tokens, and which of their rows are it."""
    if source not in SOURCES:
        raise UserError("attention of what?", f"one of {SOURCES}", repr(source))
    if source == "queries":
        return [layer.reading for layer in model.reader], [slice(None)] * len(model.reader)
    after = slice(model.config.tokens, model.config.tokens + model.config.text_length)
    adapter = [] if model.language_adapter is None else [model.language_adapter.reading]
    blocks = model.blocks.global_blocks if model.blocks is not None else model.graph.blocks if model.graph is not None else []
    if not adapter and not len(blocks):
        raise UserError("no words read patches in this model", 'fusion="cross", or a backbone', "concatenation alone", 'record "queries"')
    return [*adapter, *(block.attn for block in blocks)], [slice(None)] * len(adapter) + [after] * len(blocks)


@contextmanager
def record(model, source: str = "queries") -> Iterator[Maps]:
    """Record while the block runs; whatever happens, nothing is recorded after it."""
    modules, rows = modules_of(model, source)
    maps = Maps(modules, rows, model.image_positions)
    for module in modules:
        module.record = []
    try:
        yield maps
        maps.found = maps.layers()
        maps.layers = lambda: maps.found
    finally:
        for module in modules:
            module.record = None


def attention(model, observations: list[dict], instructions: list[str], source: str = "queries") -> np.ndarray:
    """(B, layers, heads, queries, image tokens) with which the model acts; rows of padding words are zeros."""
    with record(model, source) as maps:
        model.act(observations, instructions)
    found = maps.layers()
    if source == "words":
        with torch.inference_mode():
            _, real = model.words(list(instructions), model.device)
        found = found * real.cpu().numpy()[:, None, None, :, None]
    return found
