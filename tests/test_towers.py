"""Pretrained parts from small random checkpoints, and every way they can fail. Run: pytest tests/test_towers.py"""

import json
import shutil
import sys
import time
import types

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from repro.machine import UserError
from repro.models import pretrained
from repro.models.towers import language, vae, vision

SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
QWEN = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
VAE = {"_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 2,
       "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 4, "norm_num_groups": 4, "scaling_factor": 0.3, "shift_factor": 0.1}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A vision-only and a full checkpoint with the same vision part."""
    from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    text = {"vocab_size": 20, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole, alone = SiglipModel(SiglipConfig(text_config=text, vision_config=SIGLIP)).eval(), SiglipVisionModel(SiglipVisionConfig(**SIGLIP))
    getattr(alone, "vision_model", alone).load_state_dict(whole.vision_model.state_dict())  # one level more in transformers 5.0
    folder = tmp_path_factory.mktemp("siglip")
    whole.save_pretrained(folder / "whole")
    alone.save_pretrained(folder / "vision")
    (folder / "whole" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}))
    return folder, alone.eval()


def save_tokenizer(folder, added=0):
    """One token a byte, as Qwen2's tokenizer before its merges."""
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens([f"word{i}" for i in range(added)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    model, folder = Qwen2ForCausalLM(Qwen2Config(**QWEN)).eval(), tmp_path_factory.mktemp("qwen")
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder, model


def copy(folder, to):
    shutil.copytree(folder, to)
    return to


# ---- what is given -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vision", "whole"])
def test_vision_is_the_state_before_the_last_layer_frozen(siglip, kind):
    folder, model = siglip
    tower, pixels = vision(folder / kind), torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True).hidden_states[-2]
    found = tower.train()(pixels.requires_grad_())
    assert torch.equal(found, expected) and found.shape == (2, 16, 32)
    assert (tower.dim, tower.grid, tower.image_size, tower.frozen) == (32, (4, 4), 28, True) and not tower.encoder.training
    assert not found.requires_grad and not any(p.requires_grad for p in tower.parameters()) and len(tower.encoder.layers) == 2
    assert tower.image_mean == ([0.1, 0.2, 0.3] if kind == "whole" else [0.5] * 3)
    assert len(tower.identity["sha256"]) == 64 and tower.identity["revision"] is None
    with pytest.raises(UserError, match="another size"):
        tower(torch.zeros(1, 3, 27, 27))


def test_language_is_the_saved_model_with_its_tokenizer(qwen):
    folder, model = qwen
    found, tokenizer = language(folder, dtype=torch.float32)
    ids = torch.tensor([tokenizer("cab")["input_ids"]])
    assert ids.tolist() == [save_tokenizer(folder).encode("cab").ids] and ids.shape == (1, 3)
    assert torch.equal(found.eval()(ids).logits, model(ids).logits)
    assert found.identity["sha256"] == pretrained.weights_sha256("", folder)
    random, tokenizer = language(folder, pretrained=False, dtype=torch.float32)
    assert random.config.hidden_size == 32 and random.identity["sha256"] is None and tokenizer is not None
    assert not torch.equal(random.lm_head.weight, model.lm_head.weight)


def test_shards_are_read_and_hashed(qwen, tmp_path):
    folder, model = qwen
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    save_tokenizer(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found, _ = language(tmp_path, dtype=torch.float32)
    assert torch.equal(found.lm_head.weight, model.lm_head.weight) and found.identity["sha256"] != language(folder)[0].identity["sha256"]
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(UserError, match="model-00001-of"):
        language(tmp_path)


def test_vae_is_frozen_float32(tmp_path):
    from diffusers import AutoencoderKL

    AutoencoderKL.from_config(VAE).half().save_pretrained(tmp_path / "vae")
    model = vae(tmp_path, subfolder="vae")
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not any(p.requires_grad for p in model.parameters())
    assert not model.training and model.config.shift_factor == 0.1 and len(model.identity["sha256"]) == 64
    assert model.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean.shape == (1, 4, 8, 8)
    assert vae(tmp_path, pretrained=False).identity["sha256"] is None  # the folder below is found


@pytest.mark.parametrize(("name", "millions"), [("google/siglip-so400m-patch14-384", 428.2), ("google/siglip-base-patch16-384", 93.2),
                                                ("Qwen/Qwen2.5-0.5B", 494.0), ("Qwen/Qwen2-7B", 7615.6),
                                                ("black-forest-labs/FLUX.1-dev", 83.8)])  # fmt: skip
def test_published_configs_have_the_published_sizes(name, millions):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    with torch.device("meta"):
        if "siglip" in name:
            tower = vision(name, pretrained=False)
            side = tower.image_size // pretrained.PUBLISHED[name][2]["patch_size"]
            assert tower.grid == (side, side)
            part = SiglipVisionModel(SiglipVisionConfig.from_dict(pretrained.PUBLISHED[name][2]))  # with the layer the tower drops
        elif "Qwen" in name:
            part, tokenizer = language(name, pretrained=False, dtype=torch.float16)
            assert tokenizer is None and part.dtype == torch.float16 and part.config.rope_parameters["rope_theta"] == 1e6
        else:
            part = vae(name, pretrained=False)
            assert (part.config.latent_channels, part.config.scaling_factor, part.config.shift_factor) == (16, 0.3611, 0.1159)
    assert round(sum(p.numel() for p in part.parameters()) / 1e6, 1) == millions


# ---- what is refused ---------------------------------------------------------------------------------------------------------


def test_another_architecture_or_size_is_refused(qwen, siglip, tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    Qwen3ForCausalLM(Qwen3Config(**QWEN, head_dim=16)).save_pretrained(tmp_path / "qwen3")
    with pytest.raises(UserError, match="qwen3 instead of qwen2") as error:
        language(tmp_path / "qwen3")
    assert "never taken instead" in str(error.value)
    save_tokenizer(tmp_path / "qwen3")
    assert language(tmp_path / "qwen3", expect={"model_type": "qwen3"})[0].config.model_type == "qwen3"
    with pytest.raises(UserError, match="hidden_size 32 instead of 896"):
        language(qwen[0], expect={"hidden_size": 896})
    with pytest.raises(UserError, match="hidden_size 1152 instead of 768"):
        vision("google/siglip-so400m-patch14-384", pretrained=False, expect={"hidden_size": 768})
    for load, folder in ((vision, qwen[0]), (vae, qwen[0]), (language, siglip[0] / "vision")):
        with pytest.raises(UserError, match="does not hold"):
            load(folder)


def test_broken_files_are_named(qwen, tmp_path):
    folder = copy(qwen[0], tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="download it again"):
        language(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="not read"):
        language(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"pytorch_model.bin"):
        language(folder)
    with pytest.raises(UserError, match="nothing at that path"):
        vision(tmp_path / "nowhere")


def test_missing_tensors_are_not_made_up(qwen, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy(qwen[0], tmp_path / "less")
    state = load_file(folder / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="1 tensors are missing.*norm"):
        language(folder)


def test_a_tokenizer_of_another_model_is_refused(qwen, tmp_path):
    folder = copy(qwen[0], tmp_path / "words")
    save_tokenizer(folder, added=20)
    with pytest.raises(UserError, match="at most 260 words"):
        language(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        language(folder)


def test_code_in_a_folder_is_not_run(qwen, tmp_path):
    folder = copy(qwen[0], tmp_path / "code")
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="evil"):
        language(folder)


# ---- the hub and Kaggle ------------------------------------------------------------------------------------------------------


def test_without_a_network_the_message_says_where_it_looked(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "KAGGLE_INPUT", tmp_path / "kaggle" / "input")
    (tmp_path / "kaggle" / "input").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        vision("google/siglip-base-patch16-256")
    for words in ("kaggle/input", "hub's cache", pretrained.PUBLISHED["google/siglip-base-patch16-256"][0], "internet", "Apache-2.0"):
        assert words in str(error.value), words
    for wrong, near in (("google/siglip-so400m-patch14-348", "google/siglip-so400m-patch14-384"), ("qwen/qwen2-7b", "Qwen/Qwen2-7B"),
                        ("nobody/nothing", None)):
        with pytest.raises(UserError) as error:
            pretrained.download("vision tower", wrong, None)
        assert f"correct the name ({near}?), or turn" in str(error.value) if near else "correct the name, or turn" in str(error.value)


def test_a_hub_that_does_not_answer_is_known_soon_and_what_is_fetched_is_said_first(monkeypatch, tmp_path, capsys):
    """`snapshot_download` alone would try for minutes where packets are dropped. What is in the cache is not asked for."""
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    asked = []

    def head(address, timeout):
        asked.append(timeout)
        time.sleep(60)

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: types.SimpleNamespace(head=head))
    begun = time.monotonic()
    assert pretrained.silent(0.2) == "no answer within 0 s" and time.monotonic() - begun < 5
    monkeypatch.setattr(pretrained, "silent", lambda: "no name")
    name, commit = "google/siglip-base-patch16-256", pretrained.PUBLISHED["google/siglip-base-patch16-256"][0]
    with pytest.raises(UserError, match=r"ConnectionError: https://huggingface.co does not answer \(no name\)"):
        pretrained.download("vision tower", name, commit)
    said = capsys.readouterr().out
    assert said.startswith(f"the vision tower {name} is not in the hub's cache ({tmp_path}): fetched from https://huggingface.co, revision")
    kept = tmp_path / "models--google--siglip-base-patch16-256" / "snapshots" / commit
    kept.mkdir(parents=True)
    (kept / "model.safetensors").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(kept))
    assert pretrained.download("vision tower", name, commit) == kept and capsys.readouterr().out == ""


def test_a_hub_that_answers_anything_is_there(monkeypatch):
    import huggingface_hub

    answers = iter([OSError("no"), "403"])

    def head(address, timeout):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: types.SimpleNamespace(head=head))
    assert pretrained.silent() is None


def gated(monkeypatch, answers):
    """snapshot_download that takes its answers (errors or folders) in turn; gives the tokens it was called with."""
    from huggingface_hub.errors import GatedRepoError

    tokens, answers = [], iter(answers)

    def fetch(name, *, revision, allow_patterns, token):
        tokens.append(token)
        assert not any(pattern.endswith((".bin", ".pt")) for pattern in allow_patterns) and revision
        answer = next(answers)
        if answer is None:
            raise GatedRepoError.__new__(GatedRepoError, "Access to this model is restricted")  # its own constructor needs a reply
        return str(answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr(pretrained, "silent", lambda: None)
    return tokens


def test_a_gated_model_is_named_with_its_licence(monkeypatch):
    tokens = gated(monkeypatch, [None])
    with pytest.raises(UserError) as error:
        vae("black-forest-labs/FLUX.1-dev")
    for words in ("Non-Commercial", "consent", "HF_TOKEN", "https://huggingface.co/black-forest-labs/FLUX.1-dev", "Kaggle"):
        assert words in str(error.value), words
    assert tokens == [None]


def test_kaggles_secret_is_read_only_when_the_hub_refuses(monkeypatch, tmp_path):
    from diffusers import AutoencoderKL

    asked, module = [], types.ModuleType("kaggle_secrets")
    module.UserSecretsClient = type("Client", (), {"get_secret": lambda self, name: asked.append(name) or "secret"})
    monkeypatch.setitem(sys.modules, "kaggle_secrets", module)
    AutoencoderKL.from_config(VAE).save_pretrained(tmp_path / ("f" * 40))
    tokens = gated(monkeypatch, [tmp_path / ("f" * 40), None, tmp_path / ("f" * 40)])
    assert vae("someone/vae", revision="main").identity["revision"] == "f" * 40 and asked == []
    assert vae("someone/vae", revision="main").config.latent_channels == 4
    assert asked == ["HF_TOKEN"] and tokens == [None, None, "secret"]
    with pytest.raises(UserError, match="latent_channels 4 instead of 16"):
        gated(monkeypatch, [tmp_path / ("f" * 40)])
        vae("black-forest-labs/FLUX.1-dev", subfolder="")


def test_kaggle_inputs_are_told_by_their_content(monkeypatch, qwen, tmp_path):
    monkeypatch.setattr(pretrained, "KAGGLE_INPUT", tmp_path)
    config = {key: value for key, value in QWEN.items() if value is not None} | {"model_type": "qwen2"}
    monkeypatch.setitem(pretrained.PUBLISHED, "Qwen/Some-1B", ("0" * 40, pretrained.weights_sha256("", qwen[0]), config))
    place = copy(qwen[0], tmp_path / "models" / "qwen-lm" / "some" / "transformers" / "1b" / "1")
    model, _ = language("Qwen/Some-1B", dtype=torch.float32)
    assert torch.equal(model.lm_head.weight, qwen[1].lm_head.weight) and model.identity["name"] == "Qwen/Some-1B"
    monkeypatch.setitem(pretrained.PUBLISHED, "Qwen/Some-1B", ("0" * 40, "a" * 64, config))
    with pytest.raises(UserError, match="but other weights"):
        language("Qwen/Some-1B")
    monkeypatch.setitem(pretrained.PUBLISHED, "Qwen/Some-1B", ("0" * 40, None, config))  # no hash: by the path's words
    assert language("Qwen/Some-1B")[0].config.hidden_size == 32
    with pytest.raises(UserError, match="looked in"):  # an input does not say its commit
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        language("Qwen/Some-1B", revision="1" * 40)
    copy(place, tmp_path / "some" / "1b")
    with pytest.raises(UserError, match="several Kaggle inputs"):
        language("Qwen/Some-1B")


def test_every_published_model_has_a_licence_and_a_commit():
    for name, (revision, sha, _) in pretrained.PUBLISHED.items():
        assert len(revision) == 40 and (sha is None or len(sha) == 64) and "read it on" not in pretrained.licence(name)
    assert "Non-Commercial" in pretrained.licence("black-forest-labs/FLUX.1-dev") and "read it" in pretrained.licence("a/b")


def test_the_canvas_is_still_here():
    from repro.models.towers import compose

    assert compose(np.zeros((20, 20, 3), np.uint8), np.ones((8, 8, 3), np.uint8), 33, 33, 17).shape == (33, 33, 3)
