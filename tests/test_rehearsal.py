"""A fresh model of the config of a checkpoint: what is frozen is neither loaded nor encoded again. Run: pytest tests/test_rehearsal.py"""

from types import SimpleNamespace

import numpy as np
import pytest
from test_vggt_vla import OBSERVATIONS, STATS, WORDS, guide, shelf  # noqa: F401 (a fixture)

from repro.evaluation import rehearsal
from repro.models import sentences, towers, vggt_file, vggt_vla_checkpoint
from repro.models.vggt_vla import VGGTVLA


@pytest.mark.parametrize("vision", ["patch", "dinov2"])
def test_frozen_parts_of_a_fresh_model_are_the_policys_own(shelf, tmp_path, monkeypatch, vision):  # noqa: F811
    guide(shelf, vision=vision if vision == "patch" else str(shelf / vision)).save(tmp_path)
    policy = VGGTVLA.load(tmp_path)

    def again(*_, **__):
        raise AssertionError("loaded a second time")

    for module, name in ((vggt_file, "load"), (towers, "frozen_vision"), (towers, "language"), (vggt_vla_checkpoint, "frozen_parts"),
                         (sentences.Reader, "open"), (sentences, "cached")):  # fmt: skip
        monkeypatch.setattr(module, name, again)
    model = rehearsal.fresh(policy, SimpleNamespace(stats=STATS, episodes=[SimpleNamespace(task=task) for task in WORDS]))
    assert model.config == policy.config and model.blocks is policy.blocks and model.tower is policy.tower and model.words is policy.words
    assert not any(p.requires_grad for p in model.blocks.parameters())
    mine = {id(p) for p in policy.parameters() if p.requires_grad}
    assert mine and not mine & {id(p) for p in model.parameters()}, "what trains is its own"
    said = policy.act(OBSERVATIONS, WORDS)
    assert not np.array_equal(model.act(OBSERVATIONS, WORDS), said), "with first weights"
    assert np.array_equal(policy.act(OBSERVATIONS, WORDS), said)
