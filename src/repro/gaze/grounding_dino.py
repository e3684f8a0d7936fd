"""GroundingDINO (Liu et al. 2023, arXiv 2303.05499): boxes of the nouns that are asked for, by either of its two implementations.

    detect = GroundingDino("IDEA-Research/grounding-dino-tiny")            # hub id, local folder or file, Kaggle input
    (found,) = detect([image], [["blue block", "red bowl"]])                # one Candidates per image
    detect = GroundingDino("groundingdino_swint_ogc.pth", backend="groundingdino-py", tokenizer="bert-base-uncased/")

The default backend is transformers' own model, which needs no torchvision. The original package, groundingdino-py, is installed by
requirements-groundingdino.txt. Weights of either layout serve both; with the same weights both give the same logits and boxes for
every query (tests/test_grounding_dino.py). What each implementation leaves to chance is settled here:

- Both read one text (nouns, each closed by a full stop) and one picture (scaled as the package does), and are asked for numbers only.
- A noun's score is that of its best token, found by where the noun stands in the text; nothing is parsed out of decoded words.
- Images of different sizes never share a batch: padding changes what the Swin backbone sees at the borders, in both.
"""

import importlib.util
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from repro import clock
from repro.gaze.candidates import Candidates, candidates
from repro.gaze.grounding_dino_models import BACKENDS, import_torchvision, quiet
from repro.gaze.grounding_dino_weights import (
    SEPARATORS,
    TOKENIZER,
    digest,
    find_weights,
    local,
    read_config,
    read_tokenizer,
    read_weights,
    to_package,
    to_transformers,
    weights_file,
)
from repro.machine import UserError

__all__ = ["GroundingDino", "find_weights", "tiny", "to_package", "to_transformers"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB


class GroundingDino:
    """A GroundingDINO on one device, as one function from pictures and nouns to `Candidates`.

    weights: hub id, a folder in transformers' layout, a file or folder of the package's (.pth or .safetensors), or a Kaggle input that
    holds one of these. tokenizer: hub id or folder of bert-base-uncased's; by default the one beside the weights. config: a
    transformers config.json, where the weights have none beside them and are not one of the two published models. dtype: of the matrix
    products, by default float16 on a GPU that has it and float32 on a CPU; weights and boxes are float32. shortest, longest: pixels the
    edges of a picture are scaled to. Raises UserError for weights, tokenizers and pictures it cannot use; never falls back on others.
    """

    def __init__(self, weights: str | Path, backend: str = "transformers", tokenizer: str | Path | None = None,
                 config: str | Path | None = None, revision: str | None = None, device=None, dtype: torch.dtype | None = None,
                 batch: int = 8, box_threshold: float = 0.25, text_threshold: float = 0.25, shortest: int = 800,
                 longest: int = 1333):  # fmt: skip
        _check("backend", backend in BACKENDS, f"one of {', '.join(BACKENDS)}", backend)
        _check("batch", batch >= 1, "at least 1", batch)
        _check("these sizes", 1 <= shortest <= longest, "1 <= shortest <= longest pixels", (shortest, longest))
        for name, value in (("box_threshold", box_threshold), ("text_threshold", text_threshold)):
            _check(name, 0 <= value <= 1, "0 to 1", value)
        self.name, self.batch, self.shortest, self.longest = f"grounding-dino ({backend})", batch, shortest, longest
        self.threshold = max(box_threshold, text_threshold)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        half = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) >= (5, 3)  # the first with float16
        self.dtype = dtype or (torch.float16 if half else torch.float32)
        file = weights_file(local(weights, revision))
        state = read_weights(file)
        self.config = read_config(file, state, config)
        self.tokenizer = read_tokenizer(file.parent if tokenizer is None else local(tokenizer, patterns=TOKENIZER), self.config)
        words = sorted(self.tokenizer.get_vocab().items())
        self._fingerprint = digest(state, [backend, str(self.dtype), box_threshold, text_threshold, shortest, longest, words])
        self.model = BACKENDS[backend](self.config, state, self.tokenizer, file).to(self.device).eval()

    def __call__(self, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]) -> list[Candidates]:
        """The boxes of nouns[i] in images[i], best first. images: uint8 (H, W, 3) RGB, of one size or several.

        A box carries the noun whose best token has the highest probability, and that as its score; it is left out where the score is
        below box_threshold or text_threshold. `images` may read from disk when asked: one batch is held at a time.
        """
        _check("the nouns", len(images) == len(nouns), f"a list of nouns for each of {len(images)} images", f"{len(nouns)} lists")
        texts = [_caption(asked, i) for i, asked in enumerate(nouns)]
        spans = {text: self._spans(*text) for text in set(texts)}
        sizes = [self._size(image, i) for i, image in enumerate(images)]
        found, order = {}, sorted(range(len(sizes)), key=lambda i: (sizes[i], texts[i]))
        while order:
            clock.check()  # a batch may take seconds, an episode minutes
            take = [i for i in order[: self.batch] if sizes[i] == sizes[order[0]]]
            order = order[len(take) :]
            logits, boxes = self.raw([images[i] for i in take], [texts[i][0] for i in take])
            probability = torch.from_numpy(logits).sigmoid().numpy()
            for i, rows, cxcywh in zip(take, probability, boxes, strict=True):
                found[i] = self._candidates(rows, cxcywh, spans[texts[i]], list(nouns[i]))
        return [found[i] for i in range(len(sizes))]

    def raw(self, images: Sequence[np.ndarray], captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What the model says of one batch: logits (B, queries, tokens) and boxes (B, queries, 4) centre and size in [0, 1], float32.

        captions: "blue block. red bowl."; tokens are those of the longest, -inf beyond the end of a shorter one. Images of different
        sizes are padded to the largest.
        """
        text = self.tokenizer([_closed(caption) for caption in captions], padding="longest", return_tensors="pt").to(self.device)
        tokens, limit = text["input_ids"].shape[1], self.config.max_text_len
        _check("the text", tokens <= limit, f"at most {limit} tokens: ask for fewer nouns at once", tokens)
        pixels, mask = self._pixels(images)
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits, boxes = self.model(pixels.to(self.device), mask.to(self.device), text)
        logits, boxes = logits[..., :tokens].float().cpu().numpy(), boxes.float().cpu().numpy()
        if np.isnan(logits).any() or not np.isfinite(boxes).all():
            raise UserError("GroundingDINO's answer holds numbers that are not finite.", expected="finite logits and boxes",
                            found=f"not a number, in {self.dtype}", next_step="pass dtype=torch.float32, or check the weights")  # fmt: skip
        return logits, boxes

    def fingerprint(self) -> str:
        """Hash of all that decides an answer (weights, vocabulary, backend, dtype, thresholds, sizes), for records and resumable runs."""
        return self._fingerprint

    def _candidates(self, probability: np.ndarray, boxes: np.ndarray, spans: list[list[int]], nouns: list[str]) -> Candidates:
        """From one image's probabilities (queries, tokens) and boxes (queries, 4) cxcywh to named boxes x0, y0, x1, y1."""
        each = np.stack([probability[:, tokens].max(axis=1) for tokens in spans], axis=1)  # (queries, nouns)
        best, scores = each.argmax(axis=1), each.max(axis=1)
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1).clip(0, 1)
        kept = (scores >= self.threshold) & (corners[:, 2:] > corners[:, :2]).all(axis=1)
        return candidates(corners[kept], scores[kept], [nouns[i] for i in best[kept]])

    def _spans(self, caption: str, stops: tuple[int, ...]) -> list[list[int]]:
        """For each noun of a caption the positions of its tokens; stops: where in the caption each noun's full stop is."""
        offsets = self.tokenizer(caption, return_offsets_mapping=True)["offset_mapping"]
        spans, begin = [], 0
        for stop in stops:
            spans.append([i for i, (first, last) in enumerate(offsets) if begin <= first < last <= stop])
            _check("a noun", spans[-1], "words of which the tokenizer knows something", repr(caption[begin:stop].strip()))
            begin = stop + 1
        return spans

    def _size(self, image: np.ndarray, i: int) -> tuple[int, int]:
        """(height, width) image i is scaled to, rounded as the package does: the shortest edge first, the longest as its limit."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f"GroundingDINO cannot use image {i}.", expected="a numpy array, uint8 (H, W, 3) RGB", found=found,
                            next_step='convert it, e.g. np.asarray(Image.open(file).convert("RGB"))')  # fmt: skip
        height, width = image.shape[:2]
        short, long = min(height, width), max(height, width)
        edge = self.shortest if long / short * self.shortest <= self.longest else int(round(self.longest * short / long))
        size = (int(edge * height / width), edge) if width < height else (edge, int(edge * width / height))
        places = sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in (8, 16, 32, 64))  # of the four feature maps
        _check(f"image {i}", places >= self.config.num_queries, f"at least {self.config.num_queries} places on the feature maps",
               f"{places}: {height} x {width} pixels, scaled to {size[0]} x {size[1]}")  # fmt: skip
        return size

    def _pixels(self, images: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled and normalised pictures, float32 (B, 3, H, W), padded below and right with 0, and which pixels are a picture's."""
        sizes = [self._size(image, i) for i, image in enumerate(images)]
        height, width = np.max(sizes, axis=0).tolist()
        pixels, mask = torch.zeros(len(sizes), 3, height, width), torch.zeros(len(sizes), height, width, dtype=torch.bool)
        for i, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
            scaled = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
            values = torch.from_numpy(scaled).permute(2, 0, 1).float().div_(255)
            pixels[i, :, :height, :width] = (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
            mask[i, :height, :width] = True
        return pixels, mask


def _check(what: str, right, expected: object, found: object) -> None:
    if not right:
        raise UserError(f"GroundingDINO cannot use {what}.", expected=expected, found=found)


def _caption(nouns: Sequence[str], i: int) -> tuple[str, tuple[int, ...]]:
    """The nouns asked of image i as one text, "blue block. red bowl.", and where each of its full stops is."""
    clean = [] if isinstance(nouns, str) else [" ".join(str(noun).lower().split()) for noun in nouns]
    right = clean and all(noun and not set(noun) & set(".?") for noun in clean)
    _check(f"the nouns of image {i}", right, "a list of one or more nouns, none empty or with '.' or '?' in it", repr(nouns))
    caption = " ".join(f"{noun}." for noun in clean)
    return caption, tuple(at for at, letter in enumerate(caption) if letter == ".")


def _closed(caption: str) -> str:
    """A caption in small letters, with the full stop without which its last noun would be read word by word."""
    _check("the caption", caption.strip(".? \n\t"), "words, e.g. 'blue block. red bowl.'", repr(caption))
    return caption.lower().strip().removesuffix(".") + "."


# ------------------------------------------------------------------------------------------------------ for tests


def tiny(folder: str | Path, seed: int = 0) -> Path:
    """Write a small GroundingDINO of random weights (it finds nothing sensible) with a tokenizer, in transformers' layout; no download.

    d_model is 256 because the package has it fixed. Weights depend on `seed` alone, not on torch's or transformers' version.
    """
    if importlib.util.find_spec("torchvision"):
        import_torchvision()
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _tiny_tokenizer(folder)
    swin = SwinConfig(embed_dim=16, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, out_indices=[2, 3, 4])
    bert = BertConfig(vocab_size=1100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = GroundingDinoConfig(backbone_config=swin, text_config=bert, num_queries=30, encoder_layers=2, decoder_layers=2,
                                 encoder_ffn_dim=128, decoder_ffn_dim=128)  # fmt: skip
    with quiet():
        GroundingDinoForObjectDetection(config).save_pretrained(folder)
    state = to_transformers(load_file(folder / "model.safetensors"))
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed + zlib.crc32(name.encode())))
        scale = name.endswith("_param") or ("norm" in name.lower() and name.endswith("weight"))
        # Matrices keep the size of what they are given; scales are near 1 and shifts near 0, so that every tensor tells in the answer.
        state[name] = noise / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else 0.1 * noise + float(scale)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def _tiny_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer of letters and a few words, with the separators where bert-base-uncased has them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = "red blue pink green block bowl drawer light switch button sliding door cup table the".split()
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-'"
    known = {0: "[PAD]", 100: "[UNK]"} | {number: token for token, number in SEPARATORS.items()}
    known |= dict(enumerate([*letters, *(f"##{letter}" for letter in letters), *words], start=200))
    tokenizer = Tokenizer(models.WordPiece({known.get(i, f"[unused{i}]"): i for i in range(1100)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "model_max_length": 512}
    # A class that both transformers 4 and 5 know by name.
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | special))
