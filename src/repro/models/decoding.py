"""Greedy reading of a Qwen2 language model, token by token, with a key-value cache.

`greedy(..., fast=False)` is transformers' own forward with its cache. `fast=True` does the same arithmetic for small models with fewer and
larger operations over a cache of fixed size (tests/test_models.py compares the two): theirs is mostly bookkeeping.
"""
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, Qwen2ForCausalLM


def positions(mask: Bool[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """Position of each token among the real ones of its row; masked places get a neighbour's, which nobody reads."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def forward(decoder: Qwen2ForCausalLM, inputs: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"], cache: DynamicCache | None = None
            ) -> Float[Tensor, "b l d"]:
    """Last hidden states, after the final norm, of embedded tokens; masked ones are seen by nobody."""
    whole = bool(mask.all())
    return decoder.model(inputs_embeds=inputs, attention_mask=None if whole else mask.long(), position_ids=positions(mask),
                         past_key_values=cache, use_cache=cache is not None).last_hidden_state


def greedy(decoder: Qwen2ForCausalLM, inputs: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"], steps: int,
           embed: Callable[[Tensor], Tensor], choose: Callable[[Tensor], Tensor], fast: bool = True) -> Int[Tensor, "b steps"]:
    """`steps` ids after a prompt. `embed`: ids (B,) -> (B, 1, D); `choose`: last hidden states (B, D) -> ids (B,)."""
    reader = Reader(decoder, mask, steps) if fast and Reader.fits(decoder) else None
    cache = None if reader is not None else DynamicCache(config=decoder.config)
    chosen = [choose(reader.prompt(inputs) if reader is not None else forward(decoder, inputs, mask, cache)[:, -1])]
    for i in range(steps - 1):
        x = embed(chosen[-1])
        if reader is not None:
            hidden = reader(x, i)
        else:
            mask = F.pad(mask, (0, 1), value=True)
            hidden = decoder.model(inputs_embeds=x, attention_mask=mask.long(), position_ids=positions(mask)[:, -1:], past_key_values=cache,
                                   use_cache=True).last_hidden_state
        chosen.append(choose(hidden[:, -1]))
    return torch.stack(chosen, dim=1)


class Reader:
    """A prompt, then one token a call, through a small decoder: fused projections, keys and values in buffers of the final length.

    Of the last layer only the prompt's last position is worked out beyond its keys and values: nobody asks for the others.
    """

    def __init__(self, decoder: Qwen2ForCausalLM, mask: Bool[Tensor, "b l"], steps: int):
        self.decoder, self.length, self.steps, self.norm, self.layers = decoder, mask.shape[1], steps, decoder.model.norm, []
        for layer in decoder.model.layers:
            parts = layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj
            qkv = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
            self.layers.append((layer, None, qkv, torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])))
        self.real = mask
        self.mask = None if bool(mask.all()) else ~F.pad(mask, (0, steps), value=True)[:, None, None]  # (B, 1, 1, L + steps)

    def prompt(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b d"]:
        """Last hidden state, after the final norm; keys and values are kept."""
        B, L, places = len(x), self.length, positions(self.real)
        cos, sin = (part[:, :, None] for part in self.decoder.model.rotary_emb(x, places))  # (B, L, 1, D)
        seen = None
        if self.mask is not None:  # what is filled in sees itself: a row that sees nothing would be NaN
            seen = (torch.ones(L, L, dtype=torch.bool, device=x.device).tril() & self.real[:, None]) | torch.eye(
                L, dtype=torch.bool, device=x.device)
            seen = seen[:, None]
        for i, (layer, _, qkv, gate_up) in enumerate(self.layers):
            D, last = layer.self_attn.head_dim, i + 1 == len(self.layers)
            heads = F.linear(rms(layer.input_layernorm, x), *qkv).view(B, L, -1, D)
            H = layer.self_attn.k_proj.out_features // D
            low, high = heads[:, :, :-H].chunk(2, dim=3)
            turned = heads[:, :, :-H] * cos + torch.cat([-high, low], dim=3) * sin
            past = x.new_empty(2, B, H, L + self.steps, D)
            past[0, :, :, :L], past[1, :, :, :L] = turned[:, :, -H:].transpose(1, 2), heads[:, :, -H:].transpose(1, 2)
            self.layers[i] = layer, past, qkv, gate_up
            queries, see = turned[:, :, :-H].transpose(1, 2), seen
            if last:
                queries, x, see = queries[:, :, -1:], x[:, -1:], None if seen is None else seen[:, :, -1:]
            found = F.scaled_dot_product_attention(queries, past[0, :, :, :L], past[1, :, :, :L], see, is_causal=see is None and not last,
                                                   scale=layer.self_attn.scaling, enable_gqa=queries.shape[1] != H)
            x = x + layer.self_attn.o_proj(found.transpose(1, 2).reshape(B, x.shape[1], -1))
            x = x + self.think(layer, gate_up, x)
        places = self.real.sum(1, keepdim=True) + torch.arange(self.steps, device=x.device)
        self.cos, self.sin = (part[:, :, None] for part in self.decoder.model.rotary_emb(x, places))
        return rms(self.norm, x)[:, -1]

    @staticmethod
    def think(layer, gate_up: Tensor, x: Tensor) -> Tensor:
        gate, up = F.linear(rms(layer.post_attention_layernorm, x), gate_up).chunk(2, dim=-1)
        return layer.mlp.down_proj(F.silu(gate) * up)

    @staticmethod
    def fits(decoder: Qwen2ForCausalLM) -> bool:
        """Small, and nothing but plain linear maps (no adapters, no 4-bit weights): for others the bookkeeping is no cost."""
        layer = decoder.model.layers[0]
        plain = all(type(m) is torch.nn.Linear for part in (layer.self_attn, layer.mlp) for m in part.children() if hasattr(m, "weight"))
        return plain and decoder.config.hidden_size <= 512 and layer.input_layernorm.weight.dtype == layer.mlp.up_proj.weight.dtype

    def __call__(self, x: Float[Tensor, "b 1 d"], i: int) -> Float[Tensor, "b 1 d"]:
        x, cos, sin = x[:, 0], self.cos[:, i], self.sin[:, i]
        for layer, past, qkv, gate_up in self.layers:
            x = x + self.attend(layer.self_attn, F.linear(rms(layer.input_layernorm, x), *qkv), past, cos, sin, self.length + i + 1)
            x = x + self.think(layer, gate_up, x)
        return rms(self.norm, x)[:, None]

    def attend(self, attention, qkv: Float[Tensor, "b w"], past: Tensor, cos: Tensor, sin: Tensor, stop: int) -> Float[Tensor, "b d"]:
        B, H, D = past.shape[1], past.shape[2], past.shape[4]
        heads = qkv.view(B, -1, D)  # queries, keys, values
        turned = heads[:, :-H]
        low, high = turned.chunk(2, dim=2)
        turned = turned * cos + torch.cat([-high, low], dim=2) * sin
        past[0, :, :, stop - 1], past[1, :, :, stop - 1] = turned[:, -H:], heads[:, -H:]
        scores = turned[:, :-H].reshape(B, H, -1, D) @ past[0, :, :, :stop].transpose(2, 3) * attention.scaling  # (B, H, group, keys)
        scores = scores if self.mask is None else scores.masked_fill(self.mask[..., :stop], -torch.inf)
        return attention.o_proj((F.softmax(scores, dim=-1) @ past[1, :, :, :stop]).reshape(B, -1))


def rms(module, x: Tensor) -> Tensor:
    """A norm of Qwen2, in one operation."""
    return F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)
