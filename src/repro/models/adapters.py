"""LoRA (Hu et al. 2021, arXiv 2106.09685) on a language model, NF4 base weights (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).

    model, tokenizer = towers.language("Qwen/Qwen2-7B", quantise="nf4")
    model = adapters.add(model, LoRA(rank=16), checkpointing=True)         # in place: adapters train, the base does not

A checkpoint (ReconVLA.save) holds what trains, adapters and heads, and the identity of the frozen base.
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn

from repro.machine import UserError, compute_dtype


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates B A * alpha / rank beside the frozen linear maps named in `targets`."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05  # of what goes into A
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # attention and MLP

    def __post_init__(self):
        if self.rank < 1 or not 0 <= self.dropout < 1 or not self.targets:
            raise UserError("LoRA config", expected="rank >= 1, 0 <= dropout < 1, some targets", found=asdict(self))


# --------------------------------------------------------------------------------------------------------- NF4


def nf4(dtype: torch.dtype | None = None):
    """transformers' config of NF4 with double quantisation; arithmetic in `dtype` (float16 on a T4, see machine.compute_dtype)."""
    _bitsandbytes()
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype or compute_dtype()[0])  # fmt: skip


def quantise(model: nn.Module, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> nn.Module:
    """Make every linear map of a model NF4 in place, except the output head, one at a time; the rest moves to `device` as it is.

    For models built from a config: maps on the "meta" device are given random weights (deviation 0.02). Files are quantised while they
    are loaded (`nf4`), which never holds the whole model in 16 bits.
    """
    bnb, dtype, device = _bitsandbytes(), dtype or compute_dtype()[0], device or here()
    value = lambda old: (0.02 * torch.randn(old.shape) if old.is_meta else old.detach()).to(dtype)
    for path, old in [(path, part) for path, part in model.named_modules() if isinstance(part, nn.Linear) and path != "lm_head"]:
        with torch.device("cpu"):  # whatever the device that the model was built on
            new = bnb.nn.Linear4bit(old.in_features, old.out_features, bias=old.bias is not None, compute_dtype=dtype, quant_type="nf4",
                                    device="meta")  # fmt: skip
            new.weight = bnb.nn.Params4bit(value(old.weight), requires_grad=False, quant_type="nf4", module=new)
            new.bias = None if old.bias is None else nn.Parameter(value(old.bias), requires_grad=False)
            model.set_submodule(path, new.to(device))
    model.is_loaded_in_4bit = True  # what peft asks for
    return guard(model if any(p.is_meta for p in model.parameters()) else model.to(device))


def guard(model: nn.Module) -> nn.Module:
    """Keep 4-bit layers in the layout that training can differentiate; call right after loading, before any evaluation.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks the weights in the first evaluation pass, after which gradients are None, wrong
    or an error, for good (papers/reconvla/notes.md; shown in tests/test_adapters.py).
    """
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    return model


def here() -> str:
    """The device that a quantised model is loaded onto."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _bitsandbytes():
    try:
        import bitsandbytes
    except Exception as error:  # ImportError, or its native library does not load
        raise UserError("NF4 needs bitsandbytes, which does not import", found=f"{type(error).__name__}: {error}",
                        next_step="pip install bitsandbytes, or load without quantise=") from error  # fmt: skip
    return bitsandbytes


# -------------------------------------------------------------------------------------------------------- LoRA


def add(model: nn.Module, lora: LoRA, checkpointing: bool = True) -> nn.Module:
    """Put adapters into a causal language model, in place (names and attributes of the rest stay), and make only them trainable.

    Ready for k-bit training: adapters in float32, the base as it is. (peft's own preparation widens all of it that is not quantised,
    2.0 GiB more for Qwen2-7B's vocabulary matrices.) In training give inputs_embeds in float32 under autocast: then what layers add up
    is float32 too, and cannot overflow float16. checkpointing: activations of a layer are recomputed in the backward pass.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = {path.rsplit(".", 1)[-1] for path, part in model.named_modules() if isinstance(part, nn.Linear)}
    if not set(lora.targets) <= names:
        raise UserError("LoRA's targets are not in this model", expected=sorted(names), found=sorted(set(lora.targets) - names))
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets), bias="none")
    model = inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    model.lora = lora
    return switch_checkpointing(model, checkpointing)


def switch_checkpointing(model: nn.Module, on: bool) -> nn.Module:
    """Gradient checkpointing of each decoder layer, on or off; it acts in training mode only."""
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # transformers renamed it in 5.x
    if on:
        getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{word}_checkpointing_disable")()
    return model


def trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    """What trains, by name: adapters and new heads (projector, denoiser, whatever asks for gradients)."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
