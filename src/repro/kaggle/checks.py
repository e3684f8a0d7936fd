"""What a session asks of its machine before it begins: GPUs, the network, the hub's token. Nothing here touches CUDA."""

import os
import socket
import sys
import tempfile
from pathlib import Path

from repro import machine
from repro.machine import UserError

INTERNET = ("huggingface.co", 443)
RULE = "=" * 100


def gpus() -> list[tuple[str, tuple[int, int]]]:
    """(name, compute capability) of each GPU, by nvidia-smi; [] where there is none."""
    return [(one["name"], one["capability"]) for one in machine.gpus()]


def check_gpus(profile: str, found: list[tuple[str, tuple[int, int]]]) -> None:
    """Say what the GPUs mean for this profile; UserError where they cannot do it: none, or older than torch serves (P100)."""
    click = "right panel, Session options, Accelerator: GPU T4 x2; then Run All again"
    names = ", ".join(f"{name} (compute capability {major}.{minor})" for name, (major, minor) in found)
    print(f"GPUs: {names or 'none'}; profile {profile}")
    if old := [name for name, capability in found if capability < (7, 5)]:
        raise UserError(f"{old[0]} is older than this torch serves: every operation on it would fail", "compute capability 7.5 or more",
                        names, click)  # fmt: skip
    if profile in ("t4", "paper"):
        if not found:
            raise UserError(f"profile {profile} needs GPUs: on a CPU it would take weeks", "two T4s", "none",
                            f"{click}; or set profile = \"cpu\"")  # fmt: skip
        if len(found) == 1:
            banner("One GPU instead of two: the same result in about twice the time.", click)


def share_gpus(per_run: int, found: int) -> None:
    """Tell training.launch, by REPRO_PROCESSES, how many GPUs one run takes; said. UserError where there are fewer."""
    if not 1 <= per_run <= max(2, found) or (found and per_run > found):
        raise UserError("`gpus_per_run` does not fit this machine", "1 (runs side by side) or 2 (each run on both GPUs)",
                        f"{per_run}, with {found} GPUs", "correct it in the parameters cell, or choose T4 x2; then Run All")  # fmt: skip
    os.environ["REPRO_PROCESSES"] = str(per_run)
    if found > 1:
        how = f"each run on {per_run} GPUs, one run after the other" if per_run > 1 else f"{found} runs side by side, one a GPU"
        print(f"training: {how} (gpus_per_run)")


def internet(timeout: float = 3.0) -> bool:
    """Whether the hub can be reached; asked twice."""
    for _ in range(2):
        try:
            socket.create_connection(INTERNET, timeout).close()
            return True
        except OSError:
            continue
    return False


def use_hub(online: bool) -> None:
    """Without internet, what is not attached fails at once, with the next step, instead of after minutes; with it the hub is asked."""
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return
    os.environ.pop("HF_HUB_OFFLINE", None)  # of a session that was begun in this kernel before
    if constants := sys.modules.get("huggingface_hub.constants"):  # it read the variable when it was imported
        constants.HF_HUB_OFFLINE = False


def scratch(kaggle: Path) -> Path:
    """A folder outside of working/, for what need not be saved: <root>/tmp, or below the system's temporary one where that cannot be."""
    place = kaggle / "tmp"
    try:
        place.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        print(f"{place} cannot be written ({error.strerror})")
        place = Path(tempfile.gettempdir()) / "repro-scratch"
        place.mkdir(exist_ok=True)
    return place


def token() -> str:
    """Where HF_TOKEN comes from, in words; it is put into the environment and never shown."""
    if os.environ.get("HF_TOKEN"):
        return "set in the environment"
    try:
        from kaggle_secrets import UserSecretsClient

        os.environ["HF_TOKEN"] = UserSecretsClient().get_secret("HF_TOKEN")
        return "from Kaggle's secrets"
    except Exception:  # no such module elsewhere; on Kaggle several kinds where the secret is not attached
        return "none (only gated models need it: Add-ons, Secrets)"


def banner(*lines: str) -> None:
    """Lines that nobody overlooks."""
    print("\n".join([RULE, *(f"  {line}" for line in lines), RULE]), flush=True)
