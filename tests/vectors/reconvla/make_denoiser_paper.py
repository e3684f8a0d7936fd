"""Make denoiser_paper.npz: python tests/vectors/reconvla/make_denoiser_paper.py CHECKOUT_OF_RECONVLA [OUT.npz]

Runs the official denoiser, from the user's own checkout of OpenHelix-Team/ReconVLA @047ccd9, in an environment that has its einops and timm
0.6.13 (`PatchEmbed`, `Attention`, `Mlp`) besides this library's. Of its packages only the denoiser's modules are imported.
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[3] / "src")]
from test_reconvla_exact import PAPER, paper_inputs, paper_weights  # noqa: E402

checkout, out = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else HERE.with_name("denoiser_paper.npz"))
for name in ("recon", "recon.model", "recon.model.multimodal_denoiser"):  # without their __init__, which import the whole training code
    package = types.ModuleType(name)
    package.__path__ = [str(checkout / "reconvla" / name.replace(".", "/"))]
    sys.modules[name] = package
from recon.model.multimodal_denoiser.denoiser_dit import ReconDenoiser  # noqa: E402

side, hidden_dim, latent_dim = PAPER["grid"][0], PAPER["hidden_dim"], PAPER["latent_dim"]
sizes = dict(x_channel=latent_dim, z_channel=hidden_dim, embed_dim=PAPER["width"], depth=PAPER["depth"], n_patches=side * side)
net = ReconDenoiser(**sizes).eval()
paper_weights(net.net)
latents, hidden, levels = paper_inputs()
with torch.no_grad():
    context = net.ln_pre(hidden).transpose(1, 2).reshape(len(hidden), hidden_dim, side, side)
    output = net.net(latents, levels, context=context).numpy()
    torch.manual_seed(5)
    loss = net(context, latents).numpy()
np.savez_compressed(out, output=output.reshape(-1)[::997], loss=loss, largest=np.abs(output).max())
print(f"{out}: {output.size} numbers, largest {np.abs(output).max():.3f}, loss {loss.mean():.4f}")
