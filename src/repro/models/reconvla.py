"""ReconVLA (arXiv 2508.10333): a language model that reads both cameras, writes actions, and rebuilds where it should look.

    instruction | image tokens | instruction | proprioception | ASSISTANT: | 35 action tokens, end
                        |                                                          |
             denoiser rebuilds the gaze region                        cross-entropy on actions and end

The instruction stands before *and* after the image, so that image tokens can attend to it causally. Loss = cross-entropy +
recon_weight * diffusion loss; the reconstruction exists in training only. One class for every size: `ReconVLA(config, stats, parts)`
puts a vision tower, a language model with its tokenizer, and a VAE together (models/parts.py); `PRESETS["paper"]` is the published
model, `"t4"` the same with smaller backbones and LoRA, `"tiny"` trains on a CPU, with parts of models/tiny.py. Departures of `tiny` from
the paper are fields of the config: vision, language, vae, template, ordered_bins, soft_bins, proprio, word_dropout, parallel, draws.
"""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from repro.machine import UserError
from repro.models import parts as part
from repro.models import reconvla_pictures as pictures
from repro.models.action_tokens import BIN_VALUES, BINS, normalise_state
from repro.models.decoding import forward as decode
from repro.models.decoding import greedy
from repro.models.denoiser import Denoiser
from repro.models.prompt import Prompt
from repro.models.reconvla_config import AS_PUBLISHED, PRESETS, ReconVLAConfig  # noqa: F401 (callers import them from here)

WAVES = 6  # of a number of the state with proprio="fourier": periods 2 ... 1/16 of a range of [-1, 1]
CLIP = 4.0  # latents of the VAE have unit variance; 99 in 100 of the tiny one's lie within 3.8
BIN_SCALE = 0.1  # standard deviation of ordered bins; with the decoder's 0.02 the loss stands still for the first hundreds of steps
def fourier(values: Float[np.ndarray, " n"], width: int) -> Float[Tensor, "n width"]:
    """Sines and cosines of `values` in [-1, 1], periods from 4 down to 1/16, unit variance: neighbours start alike."""
    angles = torch.from_numpy(np.pi * values[:, None] * 2.0 ** np.linspace(-1, 5, width // 2)[None]).float()
    return 2**0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)


def box_share(box: Float[Tensor, "b 4"], rows: int, columns: int) -> Float[Tensor, "b n"]:
    """Of each cell of a grid over the picture, row by row: the share that lies in the box."""
    def along(low: Tensor, high: Tensor, n: int) -> Float[Tensor, "b n"]:
        edges = torch.arange(n + 1, device=box.device) / n
        return (torch.minimum(edges[1:], high[:, None]) - torch.maximum(edges[:-1], low[:, None])).clamp(min=0) * n

    x0, y0, x1, y1 = box.unbind(1)
    return (along(y0, y1, rows)[:, :, None] * along(x0, x1, columns)[:, None]).flatten(1)


class ReconVLA(nn.Module):
    """The policy. `stats`: {"observation.state": {"mean": [...], "std": [...]}} of the training data."""

    def __init__(self, config: ReconVLAConfig, stats: dict, parts: part.Parts):
        super().__init__()
        c, self.config = config, config
        if not {"mean", "std"} <= set(stats.get("observation.state", ())):
            raise UserError("the data's statistics say nothing of the state", 'stats["observation.state"] with "mean" and "std"',
                            sorted(stats), "pass store.stats")
        self.stats = {"observation.state": {k: [float(x) for x in stats["observation.state"][k]] for k in ("mean", "std")}}
        self.data = {}  # conventions of what it is trained on (fingerprint.of_data)
        self.state_mean, self.state_std = (np.asarray(self.stats["observation.state"][k], np.float32) for k in ("mean", "std"))
        if self.state_mean.shape != (c.state_dim,):
            raise UserError("the data's state has another size than the model's", expected=c.state_dim, found=self.state_mean.shape)
        if tuple(parts.vision.grid) != c.grid:
            raise UserError("the vision tower has another grid than the config", expected=c.grid, found=tuple(parts.vision.grid))
        self.text = Prompt(parts.tokenizer, c.template)
        self.tokens = self.text.tokens
        self.vision_tower, self.decoder, self.vae = parts.vision, parts.language, parts.vae if c.recon else None
        if len(parts.tokenizer) > self.decoder.config.vocab_size:
            raise UserError("the tokenizer is not the language model's", expected=f"at most {self.decoder.config.vocab_size} tokens",
                            found=len(parts.tokenizer))
        size = parts.vision.image_size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)
        self.image_positions = slice(0, 0)  # of the latest sequence
        self.answers = self.malformed = 0  # of `act` with constrained=False, and those that were no chunk of actions
        d = self.decoder.config.hidden_size
        self.mm_projector = parts.projector or nn.Sequential(nn.Linear(parts.vision.dim, d), nn.GELU(), nn.Linear(d, d))  # mlp2x_gelu
        numbers = c.state_dim * {"linear": 1, "fourier": 1 + 2 * WAVES}.get(c.proprio, 0)
        self.proprio = nn.Sequential(nn.Linear(numbers, 2 * d), nn.GELU(), nn.Linear(2 * d, d)) if numbers else None
        if numbers and parts.proprio is not None and parts.proprio[0].in_features == numbers:
            self.proprio = parts.proprio
        self.queries = nn.Parameter(c.init * torch.randn(c.chunk * c.action_dim, d)) if c.parallel else None
        if c.parallel and parts.queries is not None and len(parts.queries) == c.action_dim:
            self.queries.data.copy_(parts.queries.repeat(c.chunk, 1))
        self.slots = nn.Parameter(torch.zeros(2, BINS, d)) if c.train_slots else None  # of embeddings, of outputs
        if c.ordered_bins and parts.projector is None:  # a language model that has learned to point has learned its slots
            with torch.no_grad():  # slots run from the highest value (id first) down
                slots = self.decoder.get_input_embeddings().weight[self.tokens.first: self.tokens.vocab_size]
                slots.copy_(BIN_SCALE * fourier(BIN_VALUES[::-1].copy(), d))
        latent = 3 * c.latent_patch**2 if self.vae is None else 4 * self.vae.config.latent_channels  # 4: 2 x 2 unfolded
        self.denoiser = Denoiser(d, latent, c.grid, c.denoiser_width, c.denoiser_depth, c.denoiser_heads, c.draws) if c.recon else None
        self.box_head = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, 4)) if c.aux == "box" else None
        self.mask_head = nn.Linear(d, 1) if c.aux == "mask" else None
        if self.vae is not None:
            self.vae.requires_grad_(False)
        self.train(self.training)

    @classmethod
    def build(cls, config: ReconVLAConfig, stats: dict, pretrained: bool = True, instructions: list[str] = (), **given) -> "ReconVLA":
        """With the parts that the config names (see parts.build; `given`: tokenizer, vision, vae that are ready). pretrained False: any
        preset with random weights of its sizes (nf4: replace(config, quantise=None) on the meta device)."""
        return cls(config, stats, part.build(config, pretrained, instructions, **given))

    def train(self, mode: bool = True) -> "ReconVLA":
        super().train(mode)
        for frozen in (self.vae, self.vision_tower if self.vision_tower.frozen else None):
            if frozen is not None:
                frozen.eval()
        return self

    @property
    def device(self) -> torch.device:
        return self.mm_projector[0].weight.device

    def arithmetic(self):
        """The context that a language model in 16 bits with adapters, norms and heads in 32 needs; for one in 32 whatever is set stays."""
        dtype = self.decoder.get_input_embeddings().weight.dtype
        return nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype)

    # ---- pictures (models/reconvla_pictures.py) -----------------------------------------------------------------
    @property
    def key(self) -> dict[str, str]:
        """Names what each kind of array that `prepare` gives depends on, frozen weights included."""
        return pictures.key(self)

    def prepare(self, observation: dict, only: str | None = None) -> dict[str, np.ndarray]:
        """One step -> "canvas" uint8 (H, W, 3), or "features" float16 (N, Dv); where something is rebuilt "target_whole" and, with a gaze
        box, "target_gaze". only: "seen" or "target", one kind of them (`key`).

        A target is the canvas, or the canvas with the gaze crop (stretched, as upstream) in place of the static picture, above the
        unchanged wrist picture: as posterior of the VAE, float16 (2 C, h, w), mean and log variance; without cache_latents as uint8
        (H, W, 3); without a VAE uint8 (gh * p, gw * p, 3), averaged to `latent_patch` pixels a token.
        """
        return self.prepare_many([observation], only)[0]

    def prepare_many(self, observations: list[dict], only: str | None = None) -> list[dict[str, np.ndarray]]:
        """`prepare` of several steps, which tower and VAE see at once."""
        return pictures.prepare_many(self, observations, only)

    # ---- sequence -----------------------------------------------------------------------------------------------
    def embed(self, ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        embedded = self.decoder.get_input_embeddings()(ids).float()  # so what the layers add up is float32, and cannot overflow float16
        if self.slots is None:
            return embedded
        slot = ids - self.tokens.first
        offset = F.embedding(slot.clamp(0, BINS - 1), self.slots[0]) * ((slot >= 0) & (slot < BINS))[..., None]
        return embedded + offset

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        logits = self.decoder.lm_head(hidden.to(self.decoder.lm_head.weight.dtype)).float()
        if self.slots is None:
            return logits
        return logits + F.pad(hidden.float() @ self.slots[1].T, (self.tokens.first, logits.shape[-1] - self.tokens.vocab_size))

    def look(self, batch: dict) -> Float[Tensor, "b n d"]:
        """Image tokens in the language model's width, of `features` or of `canvas`; a blind model's are those of a grey canvas."""
        if self.config.blind:
            grey = torch.zeros(1, 3, *self.image_size, device=self.device)
            tokens = self._seen(grey).expand(len(batch["instruction"]), -1, -1)
        elif "features" in batch:
            tokens = torch.as_tensor(np.asarray(batch["features"])).to(self.device)
        else:
            tokens = self._seen(pictures.tower_pixels(self, batch["canvas"]))
        return self.mm_projector(tokens.to(self.mm_projector[0].weight.dtype))

    def _seen(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        with torch.no_grad() if self.vision_tower.frozen else nullcontext():
            return self.vision_tower(pixels)

    def prompt(self, batch: dict) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
        """Embeddings of all that stands before the first action token, and what of it is real.

        `batch`: canvas or features, state (B, S), instruction. The image lies at `image_positions` for all samples.
        """
        c, numbers = self.config, np.asarray(batch["state"], np.float32)
        if isinstance(batch["instruction"], str) or numbers.shape != (len(batch["instruction"]), c.state_dim):
            raise UserError("states and instructions do not belong together", f"a list of B instructions and states (B, {c.state_dim})",
                            f"states {numbers.shape}, instruction {batch['instruction']!r:.60}")
        if not np.isfinite(numbers).all():
            raise UserError("the state is not a number", "finite values", f"{int((~np.isfinite(numbers)).sum())} of {numbers.size} are not",
                            "look at observation.state of what was recorded")
        ids, real, at = (torch.from_numpy(x).to(self.device) if isinstance(x, np.ndarray) else x
                         for x in self.text.texts(list(batch["instruction"])))
        if self.training and c.word_dropout:  # a token is replaced wherever it stands in the sample
            shape = (len(ids), self.tokens.first)
            other, chosen = torch.randint(0, self.tokens.first, shape, device=self.device), torch.rand(shape, device=self.device)
            place = ids.clamp(max=self.tokens.first - 1)
            ids = torch.where((chosen.gather(1, place) < c.word_dropout) & (ids < self.tokens.first), other.gather(1, place), ids)
        text = self.embed(ids)
        image = self.look(batch)
        if len(image) != len(ids):
            raise UserError("pictures and instructions do not belong together", f"{len(ids)} pictures, one an instruction", len(image))
        normal = normalise_state(numbers, self.state_mean, self.state_std)
        numbers = torch.from_numpy(normal).to(self.device)
        if c.proprio == "fourier":  # a centimetre is a few hundredths of the range: waves down to 1/16 of it tell places apart
            angles = numbers[..., None] * math.pi * 2.0 ** torch.arange(WAVES, device=self.device)
            numbers = torch.cat([2 * numbers[..., None], angles.sin(), angles.cos()], dim=-1).flatten(1)
        state = self.embed(torch.from_numpy(self.tokens.encode(normal)).to(self.device)) if self.proprio is None else (
            self.proprio(numbers)[:, None])
        answer = self.embed(torch.tensor(self.text.answer, device=self.device)).expand(len(ids), -1, -1)
        self.image_positions = slice(at, at + image.shape[1])
        whole = [text[:, :at], image, text[:, at:], state, answer]
        inputs = torch.cat([piece.to(text.dtype) for piece in whole], dim=1)
        ones = lambda n: real.new_ones(len(ids), n)
        mask = torch.cat([real[:, :at], ones(image.shape[1]), real[:, at:], ones(state.shape[1] + answer.shape[1])], dim=1)
        return inputs, mask

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`loss`, under the name that DistributedDataParallel calls."""
        return self.loss(batch)

    def _hidden(self, batch: dict, ids: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b l d"], int]:
        """Last states of prompt and answer `ids`, and the place of the first one that predicts."""
        inputs, mask = self.prompt(batch)
        whole = torch.cat([inputs, self._answer(ids)], dim=1)
        return decode(self.decoder, whole, F.pad(mask, (0, ids.shape[1]), value=True)), inputs.shape[1] - 1

    def _answer(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """What stands in the places of the answer `ids`: itself, or the action queries."""
        return self.embed(ids) if self.queries is None else self.queries[: ids.shape[1]].expand(len(ids), -1, -1)

    def loss(self, batch: dict) -> dict[str, Tensor]:
        """Scalars: "loss" (total), "action" (cross-entropy of actions and end token), "recon", "box", "mask", and "l1": mean error of the
        most likely *first* action. (Later ones of a chunk resemble the ones before them, which the model is shown here.)

        Batch, numpy: canvas or features, target_gaze or target_whole (as `prepare` gives them), state (B, S), action (B, K, A),
        instruction list; gaze.valid (B,) bool where frames without a box are left out, gaze.box (B, 4) for aux="box" or "mask".
        """
        c, B = self.config, len(batch["action"])
        masked = self.denoiser is not None and c.target == "gaze" and c.mask_fallback
        needed = {f"target_{c.target}": self.denoiser is not None, "gaze.valid": masked or c.aux != "none", "gaze.box": c.aux != "none"}
        if lacking := [name for name, wanted in needed.items() if wanted and name not in batch]:
            raise UserError(f"the batch lacks {', '.join(lacking)}, which this model learns from",
                            expected=[name for name, wanted in needed.items() if wanted], found=sorted(batch),
                            next_step="take batches of a store with gaze boxes (repro gaze annotate); without: target='whole', aux='none'")
        ids = torch.from_numpy(self.tokens.encode(batch["action"].reshape(B, -1))).to(self.device)
        with self.arithmetic():
            hidden, start = self._hidden(batch, ids)
            logits = self.logits(hidden[:, start:])  # those that predict actions and end
        out = {"action": self.cross_entropy(logits, F.pad(ids, (0, 1), value=self.text.end))}
        with torch.no_grad():
            slots = logits[:, : c.action_dim, self.tokens.first: self.tokens.vocab_size]
            best = self.tokens.decode((self.tokens.first + slots.argmax(-1)).cpu().numpy())
            out["l1"] = torch.tensor(float(np.abs(best - batch["action"][:, 0]).mean()))
        out["loss"] = out["action"]
        found = torch.as_tensor(np.asarray(batch.get("gaze.valid", np.ones(B)), bool)).to(self.device)
        if self.denoiser is not None:
            keep = found if masked else torch.ones_like(found)
            tokens = None if c.target_wrist else (torch.arange(c.grid[0], device=self.device) < c.static_tokens)[:, None].expand(c.grid)
            latents = pictures.latents(self, torch.as_tensor(np.asarray(batch[f"target_{c.target}"])).to(self.device))
            out["recon"] = self.denoiser.loss(latents, hidden[:, self.image_positions], keep, tokens=tokens)
            out["loss"] = out["loss"] + c.recon_weight * out["recon"]
        if c.aux != "none":
            box = torch.as_tensor(np.asarray(batch["gaze.box"], np.float32)).to(self.device)
            image = hidden[:, self.image_positions][:, : c.static_tokens * c.grid[1]]
            error = self._box_error(hidden[:, start], box) if self.box_head is not None else self._mask_error(image, box)
            out[c.aux] = (error * found).sum() / found.sum().clamp(min=1)
            out["loss"] = out["loss"] + c.aux_weight * out[c.aux]
        return out

    def _box_error(self, hidden: Float[Tensor, "b d"], box: Float[Tensor, "b 4"]) -> Float[Tensor, " b"]:
        """Mean absolute error of centre and size, in shares of the picture."""
        x0, y0, x1, y1 = box.unbind(1)
        wanted = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=1)
        return (self.box_head(hidden.float()).sigmoid() - wanted).abs().mean(1)

    def _mask_error(self, hidden: Float[Tensor, "b n d"], box: Float[Tensor, "b 4"]) -> Float[Tensor, " b"]:
        """Binary cross-entropy of each token's share that the box covers."""
        logits = self.mask_head(hidden.float())[..., 0]
        covered = box_share(box.nan_to_num(), self.config.static_tokens, self.config.grid[1])
        return F.binary_cross_entropy_with_logits(logits, covered, reduction="none").mean(1)

    def cross_entropy(self, logits: Float[Tensor, "b n v"], labels: Int[Tensor, "b n"]) -> Float[Tensor, ""]:
        """Over the whole vocabulary; with soft_bins an action's target is a Gaussian over neighbouring bins instead of one bin."""
        if not self.config.soft_bins:
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        slots = torch.arange(self.tokens.first, self.tokens.vocab_size, device=logits.device)
        weight = F.softmax(-0.5 * ((slots - labels[..., None]) / self.config.soft_bins).square(), dim=-1)
        logs = F.log_softmax(logits, dim=-1)
        soft = -(weight * logs[..., self.tokens.first: self.tokens.vocab_size]).sum(-1)
        return torch.where(labels < self.tokens.vocab_size, soft, -logs.gather(-1, labels[..., None])[..., 0]).mean()

    # ---- acting -------------------------------------------------------------------------------------------------
    def observed(self, observations: list[dict], instructions: list[str]) -> dict:
        """Raw observations as a batch for `prompt`."""
        return {"canvas": np.stack([pictures.canvas(self, observation, acting=True) for observation in observations]),
                "state": np.stack([observation["observation.state"] for observation in observations]), "instruction": instructions}

    @torch.inference_mode()
    def act(self, observations: list[dict], instructions: list[str]) -> Float[np.ndarray, "b k a"]:
        """Greedy actions in [-1, 1], float32, for a batch of raw observations.

        constrained: the best of the 256 slots at each of chunk * action_dim positions. Otherwise, as upstream, the best of the whole
        vocabulary until the end token; an answer that is no chunk of actions is counted in `malformed` and read again, constrained
        (upstream decodes whatever comes, and its client fails).
        """
        return self.read(self.observed(observations, instructions))

    @torch.inference_mode()
    def read(self, batch: dict) -> Float[np.ndarray, "b k a"]:
        """`act` for a batch as `prompt` takes it."""
        was_training, c = self.training, self.config
        if was_training:
            self.eval()
        with self.arithmetic():
            inputs, mask = self.prompt(batch)
        n, first = c.chunk * c.action_dim, self.tokens.first
        if c.constrained:
            ids = self._read(inputs, mask, n, True)
        else:
            ids = self._read(inputs, mask, n + 1, False)
            wrong = ((ids[:, :n] < first) | (ids[:, :n] >= self.tokens.vocab_size)).any(1) | (ids[:, n] != self.text.end)
            ids, self.answers, self.malformed = ids[:, :n], self.answers + len(ids), self.malformed + int(wrong.sum())
            if wrong.any():
                ids[wrong] = self._read(inputs[wrong], mask[wrong], n, True)
        if was_training:
            self.train()
        return self.tokens.decode(ids.cpu().numpy()).reshape(len(ids), c.chunk, c.action_dim)

    def _read(self, inputs: Tensor, mask: Tensor, steps: int, constrained: bool) -> Int[Tensor, "b steps"]:
        first, stop, most = self.tokens.first, self.tokens.vocab_size, []

        def best(logits: Float[Tensor, "*b v"]) -> Int[Tensor, "*b"]:
            most.append(logits.detach().amax(-1))  # of NaN the best would be the first slot, an action like any other
            return logits.argmax(-1)

        slots = lambda h: first + best(self.logits(h)[..., first:stop])
        ids = self._greedy(inputs, mask, steps, slots if constrained else lambda h: best(self.logits(h)))
        if not (sound := torch.stack(most, -1).isfinite().flatten(1).all(1)).all():
            raise UserError("the model's answer is not a number", "finite logits", f"NaN or infinite for {int((~sound).sum())} of "
                            f"{len(ids)} observations",
                            "the weights are damaged or float16 overflowed: repro evaluate --check, or load it in float32")
        return ids

    def _greedy(self, inputs: Tensor, mask: Tensor, steps: int, choose: Callable[[Tensor], Tensor]) -> Int[Tensor, "b steps"]:
        if self.queries is not None:  # the prompt's last token and all queries but the last predict
            answer = self.queries[: steps - 1].expand(len(inputs), -1, -1).to(inputs.dtype)
            with self.arithmetic():
                hidden = decode(self.decoder, torch.cat([inputs, answer], dim=1), F.pad(mask, (0, steps - 1), value=True))[:, -steps:]
                return choose(hidden)
        fast = self.decoder.config._attn_implementation != "eager"  # whoever wants to see attention needs the modules themselves
        with self.arithmetic():
            return greedy(self.decoder, inputs, mask, steps, lambda ids: self.embed(ids)[:, None], choose, fast)

    @torch.inference_mode()
    def sequence(self, observations: list[dict], instructions: list[str], ids: Int[np.ndarray, "b n"] | None = None
                 ) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
        """Embeddings of prompt and action tokens but the last (`ids` None: the greedy ones), and what of them is real.

        One forward pass over it sees what `act` sees step by step (attention.attention_of); the last chunk * action_dim positions predict.
        """
        with self.arithmetic():
            inputs, mask = self.prompt(self.observed(observations, instructions))
        n = self.config.chunk * self.config.action_dim
        ids = self._read(inputs, mask, n, True) if ids is None else torch.as_tensor(ids).to(self.device)
        return torch.cat([inputs, self._answer(ids[:, : n - 1])], dim=1), F.pad(mask, (0, n - 1), value=True)

    @torch.inference_mode()
    def reconstruct(self, observations: list[dict], instructions: list[str], steps: int = 250) -> UInt8[np.ndarray, "b th tw 3"]:
        """What the denoiser draws from noise at the image tokens: pictures laid out like the target. To look at; acting does not use it.

        steps=1000 is upstream's sampler, but for a bound of the predicted clean latents at CLIP standard deviations, without which a small
        denoiser's samples run away. `targets` gives what should be seen.
        """
        if self.denoiser is None:
            raise UserError("this model has no reconstruction head", expected="a model trained with recon=True")
        was_training = self.training
        self.eval()
        with self.arithmetic():
            inputs, mask = self.prompt(self.observed(observations, instructions))
            hidden = decode(self.decoder, inputs, mask)[:, self.image_positions]
        drawn = pictures.pixels(self, self.denoiser.sample(hidden, steps, clip=1.0 if self.vae is None else CLIP))
        self.train(was_training)
        return drawn.cpu().numpy()

    @torch.inference_mode()
    def targets(self, observations: list[dict]) -> UInt8[np.ndarray, "b th tw 3"]:
        """The targets of observations as the denoiser is shown them (through the VAE, if there is one): a perfect reconstruction."""
        name = f"target_{self.config.target}"
        found = torch.from_numpy(np.stack([self.prepare(observation)[name] for observation in observations])).to(self.device)
        return pictures.pixels(self, pictures.latents(self, found)).cpu().numpy()

    # ---- on disk ------------------------------------------------------------------------------------------------
    def save(self, folder: Path | str) -> None:
        """Write model.safetensors, model.json (config, statistics, identities of frozen parts) and the tokenizer into a folder."""
        folder, weights = Path(folder), self.state_dict()
        save_file({name: weights[name].contiguous() for name in part.saved_names(self)}, folder / "model.safetensors")
        about = {"model": "ReconVLA", "config": asdict(self.config), "stats": self.stats, "data": self.data, "parts": part.identities(self)}
        if self.vae is not None:
            about["vae_config"] = {name: value for name, value in self.vae.config.items() if not name.startswith("_")}
        (folder / "model.json").write_text(json.dumps(about, indent=1))
        self.text.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path | str, parts: part.Parts | None = None) -> "ReconVLA":
        """The model of a folder written by `save`. Missing, foreign or misshapen tensors are all named, and so are frozen parts whose
        weights are not those it was trained on. `parts`: ready ones; by default those that the config names are built.
        """
        folder = Path(folder)
        if not (folder / "model.json").exists():
            raise UserError(f"{folder} holds no model", expected="model.json and model.safetensors", next_step="train first (notebook 05)")
        about = json.loads((folder / "model.json").read_text())
        unknown = set(about["config"]) - {field.name for field in fields(ReconVLAConfig)}
        if unknown:
            raise UserError(f"{folder}/model.json has config fields this version does not know", found=sorted(unknown),
                            next_step="use the version of repro named in about.json")
        config = ReconVLAConfig(**about["config"])
        if parts is None:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            parts = part.restore(config, about["parts"], tokenizer, about.get("vae_config"))
        model = cls(config, about["stats"], parts)
        part.same(about["parts"], model, folder)
        model.load_weights(load_file(folder / "model.safetensors"), folder / "model.safetensors")
        model.data = about.get("data", {})
        return model

    def load_weights(self, weights: dict[str, Tensor], source: Path | str) -> None:
        """Take over all tensors or none."""
        state = self.state_dict()
        expected = {name: tuple(state[name].shape) for name in part.saved_names(self)}
        found = {name: tuple(t.shape) for name, t in weights.items()}
        wrong = [f"{name}: expected {expected.get(name, 'absent')}, found {found.get(name, 'absent')}"
                 for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
        if wrong:
            raise UserError(f"{source} does not fit the model", expected=f"{len(expected)} tensors", found="; ".join(wrong),
                            next_step="load it with the config it was saved with")
        self.load_state_dict(weights, strict=False)
