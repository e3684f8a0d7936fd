"""How far VGGT's aggregator here is from the official code: the largest differences to the numbers in tests/vectors/vggt, as a record.

    python benchmarks/vggt_exactness.py [--json results/benchmarks/vggt_exactness.json] [--no-full]

Target: every layer within 1e-4 in float32. "full" has VGGT-1B's own sizes (909 M numbers, made from their names: some minutes, 5 GB);
the others are held by tests/test_vggt.py as well. Weights are random: the official file was not at hand.
"""

import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import test_vggt as exact  # noqa: E402  the inputs and weights that the vectors belong to

from repro import benchmark  # noqa: E402
from repro.models.vggt import VGGTConfig  # noqa: E402
from repro.training.checkpoint import provenance  # noqa: E402

TARGET = 1e-4


def differences(name: str) -> dict:
    """Of one case of tests/vectors/vggt: the largest difference over all layers, and the largest value it belongs to."""
    config, shape, official = exact.case(name)
    with torch.no_grad():
        found = [layer.numpy() for layer in exact.made(config)(exact.images(shape))]
    shown = [exact.sample(name, layer) for layer in found]
    assert len(found) == len(official) == config.depth
    apart = [float(np.abs(ours - theirs).max()) for ours, theirs in zip(shown, official, strict=True)]
    return {"layers": len(found), "width": config.dim, "pictures": list(shape), "numbers compared": int(sum(one.size for one in shown)),
            "largest difference": max(apart), "by layer": apart, "largest value": float(max(np.abs(layer).max() for layer in found))}


def main() -> None:
    options = benchmark.options(__doc__)
    options.add_argument("--no-full", action="store_true", help="without VGGT-1B's own sizes")
    given = options.parse_args()
    cases = {name: differences(name) for name in exact.CASES if not (given.no_full and name == "full")}
    met = all(one["largest difference"] < TARGET for one in cases.values())
    assert given.no_full or exact.case("full")[0] == VGGTConfig()
    record = {"official": "VGGT's aggregator in facebookresearch/lagernvs @579effc", "target": TARGET, "met": met, "cases": cases}
    benchmark.record(record | provenance(), given.json, show=False)
    for name, one in cases.items():
        far, value = one["largest difference"], one["largest value"]
        print(f"{name}: {one['layers']} layers of width {one['width']}, {far:.1e} of values up to {value:.1f}")
    print("OK" if met else "BELOW TARGET")


if __name__ == "__main__":
    main()
