"""The conversation that ReconVLA reads and writes, as token ids.

    {system} USER: {instruction}\\n <image> \\n{instruction}\\n {state ids} ASSISTANT: {action ids} <|im_end|>
    |------------ before ---------|        |------- after -------|        |- answer -|  |------ supervised ------|

Text of OpenHelix-Team/ReconVLA @047ccd9 (`train_vla.py`, `conversation.py`). The ids of state and actions are put in directly. The
official code turns them into text and back, which changes the number of state tokens in about 9 % of the frames; where its round trip
is clean, the ids here are the same (tests/test_reconvla_exact.py). Any tokenizer of transformers will do whose last 256 base entries
may be overwritten and that has `<|im_end|>`; nothing here knows an id, a chunk length or a dimension.
"""
import json
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from repro.machine import UserError
from repro.models.action_tokens import BINS, ActionTokens

IMAGE, IGNORE, END = -200, -100, "<|im_end|>"  # stands for the image tokens; a label that is not supervised; ends the answer
SYSTEM = ("A chat between a curious human and an artificial intelligence robot. "
          "The robot provides actions to follow out the user's instructions.")
TEMPLATES = {  # before the image, after it, before the actions
    "official": (SYSTEM + " USER: {}\n", "\n{}\n", " ASSISTANT:"),
    "short": (" {}", " {}", ":"),  # a word is a token: half the sequence of a small grid would be template otherwise
}
# How Qwen2 cuts text before merging: contractions, words with the character before them, single digits, marks, line ends, spaces
PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def small_tokenizer(instructions: Iterable[str], template: str = "short", merges: int = 2000) -> PreTrainedTokenizerFast:
    """A byte-level BPE in Qwen2's format, of the training instructions: any text can be written, words of the instructions are short.

    256 bytes, at most `merges` merges, 256 entries that no text reaches (the action slots), then `<|endoftext|>` and `<|im_end|>`.
    The same instructions give the same tokenizer, in whatever order they come.
    """
    before, after, answer = TEMPLATES[template]
    texts = [text for one in sorted(set(instructions)) for text in (before.format(one), after.format(one), answer)]
    cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer, learned.normalizer = cut, normalizers.NFC()
    learned.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=256 + merges, show_progress=False,
                                                           initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    model = json.loads(learned.to_str())["model"]
    words = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    words |= {f"<slot {i}>": len(words) + i for i in range(BINS)}
    whole = Tokenizer(models.BPE(vocab=words, merges=[tuple(pair) for pair in model["merges"]]))
    whole.pre_tokenizer, whole.normalizer, whole.decoder = cut, normalizers.NFC(), decoders.ByteLevel()
    whole.add_special_tokens(["<|endoftext|>", END])
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<|endoftext|>", eos_token=END)


class Prompt:
    """Ids of a conversation. `tokens`: numbers <-> ids; `answer`, `end`: ids of what stands before and after the actions."""

    def __init__(self, tokenizer, template: str = "official"):
        if template not in TEMPLATES:
            raise UserError("there is no such prompt template", expected=f"one of {tuple(TEMPLATES)}", found=repr(template))
        self.tokenizer, self.template, self._known = tokenizer, template, {}
        self.tokens = ActionTokens(tokenizer.vocab_size)  # without added tokens: 151643 for Qwen2
        self.answer = self._ids(TEMPLATES[template][2])
        self.end = tokenizer.convert_tokens_to_ids(END)
        slots = range(self.tokens.first, self.tokens.vocab_size)
        if self.end is None or self.end == tokenizer.unk_token_id or self.end in slots:
            raise UserError("the tokenizer has no end token beside its action slots", expected=f"{END} among the added tokens",
                            found=f"id {self.end}, slots {self.tokens.first} .. {self.tokens.vocab_size - 1}",
                            next_step="use a tokenizer of the Qwen2 family, or repro.models.prompt.small_tokenizer")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def text(self, instruction: str) -> tuple[list[int], list[int]]:
        """Ids before and after the image (without the state), remembered per instruction."""
        if instruction not in self._known:
            if "<image>" in instruction or END in instruction:
                raise UserError("an instruction contains a marker of the conversation", expected=f"no <image> and no {END}",
                                found=repr(instruction))
            before, after, _ = TEMPLATES[self.template]
            self._known[instruction] = self._ids(before.format(instruction)), self._ids(after.format(instruction))
        return self._known[instruction]

    def texts(self, instructions: list[str]) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"], int]:
        """Ids before and after the image side by side, what of them is text, and where the image belongs (a column).

        Each part is filled up on its left, so that the image, and everything that follows, begins in one column for all samples.
        What is filled in is masked and not counted as a position: results do not depend on it.
        """
        pairs = [self.text(instruction) for instruction in instructions]
        lengths = [max(len(pair[part]) for pair in pairs) for part in (0, 1)]
        ids = np.full((len(pairs), sum(lengths)), self.end, np.int64)
        real = np.zeros(ids.shape, bool)
        for row, (before, after) in enumerate(pairs):
            for part, stop in ((before, lengths[0]), (after, sum(lengths))):
                ids[row, stop - len(part): stop], real[row, stop - len(part): stop] = part, True
        return ids, real, lengths[0]

    def sample(self, instruction: str, state: Float[np.ndarray, " s"] | None, action: Float[np.ndarray, "*k"] | None = None
               ) -> tuple[list[int], list[int]]:
        """One whole conversation (ids, labels), IMAGE for the image, as official code lays it out; without `action` the prompt alone.

        `state`: normalised, written as ids; None where it is not written (proprio="linear").
        """
        before, after = self.text(instruction)
        ids = [*before, IMAGE, *after, *([] if state is None else self.tokens.encode(state).tolist()), *self.answer]
        if action is None:
            return ids, [IGNORE] * len(ids)
        answer = [*self.tokens.encode(np.asarray(action).ravel()).tolist(), self.end]
        return ids + answer, [IGNORE] * len(ids) + answer
