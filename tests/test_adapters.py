"""LoRA and NF4 on a small language model: gradients, the AVX512-BF16 guard, files. Run: pytest tests/test_adapters.py"""

import warnings

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from repro.machine import UserError
from repro.models import adapters
from repro.models.adapters import LoRA
from repro.models.towers import language

bnb = pytest.importorskip("bitsandbytes")
CONFIG = Qwen2Config(vocab_size=96, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None)  # fmt: skip
IDS = torch.arange(24).view(2, 12) % 96


def base(seed=0):
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(CONFIG)
    for part in model.modules():
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.normal_(part.bias, std=0.1)
    return model


def with_lora(model, seed=1, **options):
    """Adapters with both factors away from zero, so that every gradient tells."""
    adapters.add(model, LoRA(rank=4, dropout=0.0), **options)
    torch.manual_seed(seed)
    for parameter in adapters.trainable(model).values():
        nn.init.normal_(parameter, std=0.1)
    return model


def dequantised(model):
    """A float32 model with the very weights that a quantised one computes with."""
    twin = base()
    with torch.no_grad():
        for path, part in model.named_modules():
            if isinstance(part, bnb.nn.Linear4bit):
                twin.get_submodule(path).weight.copy_(bnb.functional.dequantize_4bit(part.weight, part.weight.quant_state))
    return twin


def gradients(model):
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    return {name: parameter.grad for name, parameter in adapters.trainable(model).items()}


def evaluate(model):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.eval()(input_ids=IDS).logits


def worst(found, expected):
    return max(float((found[name] - value).norm() / value.norm()) for name, value in expected.items())


# ---- NF4 ---------------------------------------------------------------------------------------------------------------------


def test_after_an_evaluation_lora_trains_as_on_the_dequantised_model():
    model = adapters.quantise(base(), torch.float32, "cpu")
    twin = with_lora(dequantised(model))
    with_lora(model)
    logits = evaluate(model)
    assert torch.allclose(logits, evaluate(twin), atol=1e-4) and torch.equal(logits, evaluate(model))
    found, expected = gradients(model), gradients(twin)
    assert found.keys() == expected.keys() and len(found) == 2 * 7 * 2 and all(float(grad.norm()) > 0 for grad in expected.values())
    assert worst(found, expected) < 1e-5
    state = model.state_dict()  # harmless as well
    assert len(state) > 0 and torch.equal(evaluate(model), logits)


def test_without_the_guard_that_fails_on_avx512_bf16(monkeypatch):
    if not bnb.functional.has_avx512bf16():
        pytest.skip("SKIPPED LOUDLY: this CPU has no AVX512-BF16, so that the guard's absence shows nothing here")
    monkeypatch.setattr(adapters, "guard", lambda model: model)
    model = adapters.quantise(base(), torch.float32, "cpu")
    twin = with_lora(dequantised(model))
    with_lora(model)
    evaluate(model)
    expected = gradients(twin)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = gradients(model)
    except RuntimeError:
        return  # Qwen2's biased projections: in-place on a leaf view
    assert any(grad is None for grad in found.values()) or worst(found, expected) > 0.01


def test_a_checkpoint_is_quantised_while_it_is_loaded_and_guarded(tmp_path, monkeypatch):
    from test_towers import save_tokenizer

    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)  # what layers ask, whatever CPU this is
    config = Qwen2Config(**{**CONFIG.to_dict(), "vocab_size": 260})
    torch.manual_seed(0)
    saved = Qwen2ForCausalLM(config)
    saved.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model, _ = language(tmp_path, dtype=torch.float32, quantise="nf4")
    here = adapters.quantise(saved, torch.float32, "cpu")  # the other way to the same numbers
    for layers in ([part for part in one.modules() if isinstance(part, bnb.nn.Linear4bit)] for one in (model, here)):
        assert len(layers) == 14 and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert type(model.lm_head) is nn.Linear and len(model.identity["sha256"]) == 64
    assert torch.equal(evaluate(model), evaluate(here))
    with pytest.raises(UserError, match="nf4"):
        language(tmp_path, quantise="int3")


def test_a_quantised_model_from_a_config_needs_no_whole_copy():
    with torch.device("meta"):
        model = adapters.quantise(Qwen2ForCausalLM(CONFIG).half(), torch.float16, "cpu")
    assert model.lm_head.weight.is_meta
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.uint8 and weight.numel() == 128 * 256 // 2 and weight.quant_state.nested


# ---- LoRA --------------------------------------------------------------------------------------------------------------------


def test_only_adapters_train_and_a_fresh_one_changes_nothing():
    model = base()
    before = evaluate(model)
    adapters.add(model, LoRA(rank=4))
    assert torch.allclose(evaluate(model), before, atol=1e-6)
    assert all("lora_" in name for name in adapters.trainable(model)) and model.lora == LoRA(rank=4)
    assert sum(p.numel() for p in adapters.trainable(model).values()) == 2 * 4 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 256))
    with pytest.raises(UserError, match="c_attn"):
        adapters.add(base(), LoRA(targets=("c_attn",)))
    with pytest.raises(UserError, match="rank"):
        LoRA(rank=0)


@pytest.mark.parametrize("quantised", [False, True])
def test_adapters_of_a_half_model_are_float32_and_it_runs_with_and_without_autocast(quantised):
    model = adapters.quantise(base().half(), torch.float16, "cpu") if quantised else base().half()
    adapters.add(model, LoRA(rank=4, dropout=0.0), checkpointing=True)
    kinds = {("lora" if "lora_" in name else "base"): p.dtype for name, p in model.named_parameters() if p.dtype != torch.uint8}
    assert kinds == {"lora": torch.float32, "base": torch.float16}
    logits = evaluate(model)
    assert logits.dtype == torch.float16 and logits.isfinite().all()
    with torch.autocast("cpu", torch.float16):
        words = model.get_input_embeddings()(IDS).float()
        model.train().model(inputs_embeds=words).last_hidden_state.float().square().mean().backward()
    found = adapters.trainable(model)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in found.values())
    assert any(float(p.grad.norm()) > 0 for p in found.values())


def test_checkpointing_gives_the_same_gradients():
    with_it, without = with_lora(base(), checkpointing=True), with_lora(base(), checkpointing=False)
    on = lambda model: any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    assert on(with_it) and not on(without)
    assert worst(gradients(with_it), gradients(without)) < 1e-6
    assert not on(adapters.switch_checkpointing(with_it, False))
