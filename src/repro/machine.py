"""Where am I: Kaggle or laptop, which devices, which dtype and why, where work is written and where the user's data is."""

import difflib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Bad input. Says what is wrong, what was expected, what was found and what to do next, each on its own line."""

    def __init__(self, what: str, expected: object = None, found: object = None, next_step: str | None = None):
        lines = [what]
        for name, value in (("expected", expected), ("found", found), ("next step", next_step)):
            if value is not None:
                lines.append(f"  {name}: {value}")
        super().__init__("\n".join(lines))


def nearest(name: str, names: Iterable[str], otherwise: str) -> str:
    """The next step where none of `names` is called so: the one that was meant, perhaps."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise


# ---------------------------------------------------------------------------------------------------- devices


def capabilities() -> list[tuple[int, int]]:
    """Compute capability (major, minor) of each visible NVIDIA GPU; empty where torch sees none.

    Of nvidia-smi, as long as this process has no CUDA context: asking torch would make one, half a GB on the first GPU.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    if not torch.cuda.is_initialized() and (found := gpus()):
        return [one["capability"] for one in found]
    return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]


def gpus() -> list[dict]:
    """name, capability (major, minor) and memory_gib of each visible GPU, by nvidia-smi; [] where there is none, no nvidia-smi, or one that
    does not tell all of them ("[N/A]")."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=index,uuid,name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()] if done.returncode == 0 else []
    found = {}
    for index, uuid, name, capability, memory in (row for row in rows if len(row) == 5):
        try:
            gib = round(float(memory) / 1024, 1)
            found[index] = (uuid, {"name": name, "capability": tuple(map(int, capability.split("."))), "memory_gib": gib})
        except ValueError:
            return []  # whoever asks goes on to ask torch
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [about for _, about in found.values()]
    named = [part.strip() for part in visible.split(",")]
    return [about for name in named for index, (uuid, about) in found.items() if name and (name == index or uuid.startswith(name))]


def compute_dtype():
    """`(torch dtype, reason)` for training here, asked by compute capability of the weakest GPU.

    `torch.cuda.is_bf16_supported()` is no guide: it says True on a T4, where bfloat16 is emulated and slow.
    """
    import torch

    found = capabilities()
    if not found:
        return torch.float32, "no NVIDIA GPU: float32 on the CPU"
    major, minor = min(found)
    gpu = f"compute capability {major}.{minor}"
    if major >= 8:
        return torch.bfloat16, f"{gpu}: native bfloat16 (Ampere and later), no loss scaling"
    return torch.float16, f"{gpu}: float16 with a gradient scaler, since bfloat16 is only emulated before 8.0"


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX); elsewhere they are slower than float32."""
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text().split()))


# ------------------------------------------------------------------------------------------------------ where


def on_kaggle() -> str | None:
    """Kaggle's run type, "Interactive" or "Batch" (Save & Run All); None elsewhere."""
    return os.environ.get("KAGGLE_KERNEL_RUN_TYPE") or None


def kaggle_root() -> Path:
    """The folder that holds Kaggle's input/ and working/: /kaggle, or REPRO_KAGGLE_ROOT."""
    return Path(os.environ.get("REPRO_KAGGLE_ROOT") or "/kaggle")


def root() -> Path:
    """The repository: REPRO_ROOT, else the nearest parent of the current folder that holds notebooks/ and pyproject.toml,
    else /kaggle/working on Kaggle, else the current folder."""
    if os.environ.get("REPRO_ROOT"):
        return Path(os.environ["REPRO_ROOT"]).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return kaggle_root() / "working" if on_kaggle() else here


def work(profile: str) -> Path:
    """Where a run of `profile` writes everything: <REPRO_WORK>/<profile>, else <root>/work/<profile>. Not created here."""
    return (Path(os.environ["REPRO_WORK"]).resolve() if os.environ.get("REPRO_WORK") else root() / "work") / profile


def prepared(store: Path) -> Path:
    """The folder of what models make of a store's pictures, all of it made again when it is gone: `<store>.prepared`, or below
    REPRO_SCRATCH, where that is set, a folder that is named by the store's place. Not created here."""
    if not os.environ.get("REPRO_SCRATCH"):
        return store.with_name(store.name + ".prepared")
    place = hashlib.sha256(str(store.resolve()).encode()).hexdigest()[:8]
    return Path(os.environ["REPRO_SCRATCH"]) / f"{store.name}-{place}.prepared"


@contextmanager
def alone(lock: Path, wait: bool = False) -> Iterator[bool]:
    """True where no other process holds this file; the kernel frees it when a process ends, however it ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            free = os.path.samestat(os.fstat(held.fileno()), os.stat(lock))  # not a file that its holder has just removed
        except (BlockingIOError, FileNotFoundError):
            free = False
        yield free


def calvin_data() -> Path | None:
    """The user's own CALVIN folder (the one that holds training/ and validation/), from REPRO_CALVIN; None where it is not set.

    CALVIN's simulator is looked for beside it. No run reads it by itself: it is given as `-p calvin_root`.
    """
    if not os.environ.get("REPRO_CALVIN"):
        return None
    folder = Path(os.environ["REPRO_CALVIN"]).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(
            f"REPRO_CALVIN names {folder}, which is not a folder",
            expected="the folder of one CALVIN split, e.g. task_D_D, holding training/ and validation/",
            found="a file" if folder.exists() else "nothing at that path",
            next_step="correct or unset REPRO_CALVIN; a run reads the data it is given: -p calvin_root FOLDER",
        )
    return folder


# --------------------------------------------------------------------------------------------------- describe


def cores() -> int:
    """CPU cores this process may use (containers and `taskset` give fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict:
    """Hardware and place as plain JSON, for run records: cpu, cores, memory_gib, gpus, python, platform, kaggle."""
    import psutil
    import torch

    here = gpus() if torch.cuda.is_available() else []
    if torch.cuda.is_available() and not here:
        each = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        here = [{"name": one.name, "capability": (one.major, one.minor), "memory_gib": round(one.total_memory / 2**30, 1)} for one in each]
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [{**one, "capability": "{}.{}".format(*one["capability"])} for one in here],
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "kaggle": {"run_type": on_kaggle(), "image": _kaggle_image()} if on_kaggle() else None,
    }


def _cpu_name() -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _kaggle_image() -> str | None:
    """Commit of Kaggle's image, which it leaves in /etc/git_commit."""
    note = Path("/etc/git_commit")
    return note.read_text().strip() if note.is_file() else None
