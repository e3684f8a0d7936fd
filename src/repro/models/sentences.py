"""Instructions as states of a language model, encoded once: a frozen model need not stay in memory while a policy trains.

    table = cached(sentences, "Qwen/Qwen3-0.6B-Base", None, 77, "work/store/training.prepared/sentences.safetensors")
    words = FrozenWords(table)                           # words(["open the drawer"]) -> (1, 77, hidden), mask (1, 77)

The file holds each sentence's last hidden states (its real tokens alone, float16), the sentences, and what the language model was: name,
revision, sha256, shapes, tokenizer. A file of another model is not read but made anew: of another name or revision, or of other weights,
which are hashed where the name is a folder's. `TinyWords` trains along instead: no random language model is ever frozen.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from repro.machine import UserError
from repro.models import fingerprint
from repro.models import pretrained as files
from repro.models.prompt import small_tokenizer

TOGETHER = 32  # sentences encoded at once


@dataclass
class Table:
    """States of sentences, {sentence: float16 (tokens, hidden)}, and `about`, the language model they come from."""

    about: dict
    states: dict[str, Tensor] = field(default_factory=dict)

    def save(self, file: Path | str) -> None:
        """Written aside, then renamed."""
        file, order = Path(file), sorted(self.states)
        part = file.with_name(file.name + ".part")
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({str(i): self.states[sentence].contiguous() for i, sentence in enumerate(order)}, part,
                  {"about": json.dumps(self.about), "sentences": json.dumps(order)})
        os.replace(part, file)

    @classmethod
    def load(cls, file: Path | str) -> "Table":
        try:
            with safe_open(file, "pt") as opened:
                note = opened.metadata() or {}
                order = json.loads(note["sentences"])
                return cls(json.loads(note["about"]), {sentence: opened.get_tensor(str(i)) for i, sentence in enumerate(order)})
        except Exception as error:  # safetensors raises kinds of its own
            raise UserError(f"{file} holds no encoded sentences", "a file of models/sentences.py", files.line(error),
                            "delete it: it is made anew from the sentences") from error


class Reader:
    """A frozen language model with its tokenizer: sentences -> states."""

    def __init__(self, model: nn.Module, tokenizer, length: int):
        if tokenizer is None:
            raise UserError("the language model has no tokenizer", "tokenizer.json beside config.json", "none")
        self.model, self.tokenizer, self.length = model.requires_grad_(False).eval(), tokenizer, length
        shapes = fingerprint.of_config(model.config.to_dict())
        self.about = {**getattr(model, "identity", {}), **shapes, **fingerprint.of_tokenizer(tokenizer)}

    @classmethod
    def open(cls, name: str, revision: str | None, length: int, dtype: torch.dtype | None = torch.float32, expected: dict | None = None
             ) -> "Reader":
        """The named model. expected: what a checkpoint says of it, weights' sha256 included; compared before it is built (what its files do
        not say, after)."""
        from repro.models import towers

        if expected is not None:
            check(name, expected)
        folder = Path(name).expanduser()
        about = files.read_json(folder / "config.json") if folder.is_dir() else files.PUBLISHED.get(name, (None, None, {}))[2]
        kind = about.get("model_type") or (expected or {}).get("model_type")
        if kind and not fingerprint.knows(kind):
            fingerprint.refuse_unknown({"language": {"name": name, "model_type": kind}}, name)

        def agree(place: files.Place) -> None:
            if expected is not None:
                here = {**fingerprint.of_folder(place.folder), **fingerprint.of_config(place.config), **place.identity}
                fingerprint.refuse_other({"language": {key: value for key, value in expected.items() if key in here}}, {"language": here},
                                         "the checkpoint")

        model, tokenizer = towers.language(name, revision, dtype=dtype, expect={"model_type": kind} if kind else None, agree=agree)
        reader = cls(model, tokenizer, length)
        if expected is not None:
            fingerprint.refuse_other({"language": expected}, {"language": reader.about}, "the checkpoint")
        return reader

    @torch.no_grad()
    def __call__(self, sentences: list[str]) -> list[Float[Tensor, "n hidden"]]:
        """Last hidden states of each sentence's tokens, in the model's own dtype."""
        ids = [self.tokenizer(sentence)["input_ids"] for sentence in sentences]
        refuse_lengths(sentences, ids, self.length)
        out, device = [], next(self.model.parameters()).device
        for start in range(0, len(ids), TOGETHER):
            some = ids[start: start + TOGETHER]
            wide = max(map(len, some))
            mask = torch.tensor([[1] * len(one) + [0] * (wide - len(one)) for one in some], device=device)
            given = torch.tensor([one + [0] * (wide - len(one)) for one in some], device=device)
            hidden = self.model.model(input_ids=given, attention_mask=mask, use_cache=False).last_hidden_state
            out += [states[: len(one)] for states, one in zip(hidden, some, strict=True)]
        return out


def refuse_lengths(sentences: list[str], ids: list[list[int]], length: int) -> None:
    """UserError for the first sentence whose tokens are none, or more than `length`."""
    for sentence, one in zip(sentences, ids, strict=True):
        if not 0 < len(one) <= length:
            raise UserError(f"an instruction is empty or too long: {sentence!r}", f"1 to {length} tokens (text_length)", len(one),
                            "shorten it, or train with a larger text_length" if one else "give it words")


def asked_revision(name: str, revision: str | None) -> str | None:
    """Of a hub id, the pinned one or main where none is asked for; a folder has none."""
    return None if Path(name).expanduser().is_dir() else revision or files.PUBLISHED.get(name, ("main",))[0]


def known(name: str) -> dict:
    """What is known of a language model without loading it; of a folder the sha256 of its weights too (1 to 3 s for Qwen3-0.6B)."""
    if not Path(name).expanduser().is_dir():
        return fingerprint.of_name(name) or {}
    folder, _ = files._folder("language model", name, None, None, "", files.causal, {})
    return {**fingerprint.of_folder(folder), "sha256": files.weights_sha256("language model", folder)}


def check(name: str, expected: dict, source: object = "the checkpoint") -> None:
    """Refuse a language model that is known, without opening weights, to be another one than `expected` says."""
    found = fingerprint.of_name(name)
    if found is not None:
        shared = {key: value for key, value in expected.items() if key in fingerprint.SHAPES or key in ("tokens", "tokenizer")}
        if "tokenizer" not in found:
            shared = {key: value for key, value in shared.items() if key in found}
        fingerprint.refuse_other({"language": shared}, {"language": {"name": name, **found}}, source,
                                 fingerprint.advice({"language": expected}, {"language": found}))


def cached(sentences: Iterable[str], name: str, revision: str | None, length: int, file: Path | str | None = None,
           open_reader: Callable[[], Reader] | None = None, log: Callable = print) -> Table:
    """The states of these sentences: from `file` where it has them from the same model, else encoded now and written there.

    The language model is loaded only if a sentence is missing, and let go of before this returns.
    """
    wanted, table = set(sentences), None
    asked = {"name": name, "text_length": length, "asked_revision": asked_revision(name, revision)}
    if file is not None and Path(file).exists():
        found, asked = Table.load(file), known(name) | asked
        early = {"asked_revision": asked["asked_revision"]}  # which early files do not say
        if all((early | found.about).get(key) == value for key, value in asked.items()):
            table = found
        else:
            log(f"{file} is of another language model, revision or length than {name} now: made anew")
    missing = sorted(wanted - set(table.states if table else ()))
    if missing:
        reader = open_reader() if open_reader else Reader.open(name, revision, length)
        if table is not None and table.about.get("sha256") != reader.about.get("sha256"):
            table, missing = None, sorted(wanted)
        table = table or Table({**reader.about, "text_length": length, "asked_revision": asked["asked_revision"]})
        table.states |= {sentence: states.to(torch.float16).cpu() for sentence, states in zip(missing, reader(missing), strict=True)}
        if file is not None:
            table.save(file)
    about = {key: value for key, value in table.about.items() if key != "asked_revision"}  # the file's matter, not the model's
    return Table(about, {sentence: table.states[sentence] for sentence in wanted})


class FrozenWords(nn.Module):
    """Sentences -> states of a frozen language model, (B, length, hidden) float32 and what of them is real, (B, length).

    table: sentences that are known. reader: the model itself, asked for every sentence (no cache). open_reader: loads it for a sentence
    that is not in the table; without both, such a sentence is an error. Holds no parameter and nothing that goes into a state dict.
    """

    def __init__(self, table: Table, length: int, reader: Reader | None = None, open_reader: Callable[[], Reader] | None = None):
        super().__init__()
        self.table, self.length, self.width, self.reader, self.open_reader = table, length, table.about["hidden_size"], reader, open_reader

    def forward(self, sentences: list[str], device: torch.device) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
        if self.reader is not None:
            if next(self.reader.model.parameters()).device != device:
                self.reader.model.to(device)
            states = [one.to(torch.float16) for one in self.reader(sentences)]
        else:
            new = sorted({sentence for sentence in sentences if sentence not in self.table.states})
            if new:
                self._learn(new)
            states = [self.table.states[sentence].to(device) for sentence in sentences]
        out, real = torch.zeros(len(states), self.length, self.width, device=device), torch.zeros(len(states), self.length, device=device)
        for i, one in enumerate(states):
            out[i, : len(one)], real[i, : len(one)] = one.float(), 1
        return out, real.bool()

    def _learn(self, new: list[str]) -> None:
        if self.open_reader is None:
            raise UserError(f"{len(new)} instructions were not encoded before", "sentences of the training data, or a language model here",
                            new[:3], f"give it the language model ({self.table.about.get('name')}): load(language=...), "
                            "or --language FOLDER of repro evaluate")
        reader = self.open_reader()  # compared with the checkpoint's before it is built
        self.table.states |= {sentence: states.to(torch.float16).cpu() for sentence, states in zip(new, reader(new), strict=True)}


class TinyWords(nn.Module):
    """Word embeddings with learned places, trained along. dropout: share of tokens replaced in training, the same within a sample."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, length: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.tokenizer, self.length, self.width, self.dropout = tokenizer, length, width, dropout
        self.words, self.places = nn.Embedding(len(tokenizer), width), nn.Parameter(0.1 * torch.randn(length, width))

    def forward(self, sentences: list[str], device: torch.device) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
        ids = [self.tokenizer.encode(" " + sentence if sentence else "", add_special_tokens=False) for sentence in sentences]
        refuse_lengths(sentences, ids, self.length)
        numbers = torch.zeros(len(ids), self.length, dtype=torch.long, device=device)
        real = torch.zeros(len(ids), self.length, dtype=torch.bool, device=device)
        for i, one in enumerate(ids):
            numbers[i, : len(one)], real[i, : len(one)] = torch.tensor(one, device=device), True
        if self.training and self.dropout:
            shape = (len(ids), len(self.tokenizer))
            other, chosen = torch.randint(0, shape[1], shape, device=device), torch.rand(shape, device=device)
            numbers = torch.where(chosen.gather(1, numbers) < self.dropout, other.gather(1, numbers), numbers)
        return (self.words(numbers) + self.places) * real[..., None], real


def build(config, instructions: list[str], cache: Path | str | None = None) -> "TinyWords | FrozenWords":
    """The words part that a config names (language, language_revision, text_length, cache_language, dtype, ...) for these sentences."""
    c = config
    if c.language == "tiny":
        return TinyWords(small_tokenizer(instructions, "short"), c.text_length, c.language_width, c.word_dropout)
    opening = lambda: Reader.open(c.language, c.language_revision, c.text_length, torch.float32 if c.dtype == "float32" else None)
    if c.cache_language:
        table = cached(instructions, c.language, c.language_revision, c.text_length, cache, opening)
        return FrozenWords(table, c.text_length, open_reader=opening)
    reader = opening()
    return FrozenWords(Table(reader.about), c.text_length, reader)
