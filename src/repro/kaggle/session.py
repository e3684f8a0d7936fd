"""What an uploaded notebook calls: begin, the roots of the data, each section, finish. Works in any folder that is shaped like Kaggle's.

The root is /kaggle, or REPRO_KAGGLE_ROOT: <root>/input is looked through and never written, <root>/working gets everything.
The notebook's own process never touches CUDA: GPUs are asked for by nvidia-smi.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import repro
from repro import machine, profiles
from repro.kaggle import environment, inputs
from repro.kaggle.times import clock, read_times
from repro.machine import UserError

FREE_GB = {"smoke": 0.5}  # less free disk than this in working/ and a run is not begun; other profiles: 2
KEPT = (".json", ".jsonl", ".png", ".svg", ".md", ".html", ".csv", ".txt")  # what results.zip takes
LEFT = ("store", "calvin", "libero", "levir")  # folders of data, which results.zip leaves out
RAW = ("calvin", "libero")  # of these, raw files of the embedded default: drawn again in seconds, too many for Kaggle to save
TRAINABLE = 100  # annotated segments; fewer show the pipeline and train nothing
INTERNET = ("huggingface.co", 443)
RULE = "=" * 100


@dataclass
class Session:
    """One run of an uploaded notebook: what is attached, which sections there are, how long each took."""

    profile: str
    sections: list[str]
    work: Path
    attached: inputs.Inputs
    times: dict
    began: list[tuple[str, float]] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------------------- data

    def calvin(self, given: str, episodes: int = 0, url: str = "", disk_gb: float = 12.0) -> str:
        """`calvin_root` for the sections: as given, as attached, as fetched, else "" for the embedded default, with a banner."""
        if given:
            return given
        if found := self.attached.calvin_root():
            from repro.data.calvin import Calvin

            count = len(Calvin(found).split("training").annotations)
            print(f"CALVIN: {found}, {count} annotated segments to train on")
            if count < TRAINABLE:
                _banner(f"{count} annotated segments are enough to see the pipeline, not to train.", "Attach more, or set calvin_episodes.")
            return str(found)
        if episodes:
            from repro.data import calvin_remote
            from repro.data.stored import copy_files

            target = self.work.parent / "calvin_store"
            if self.attached.fetching and not target.exists():  # of the last session: its frames are not fetched again
                print(f"goes on with {self.attached.fetching[0]}")
                copy_files(self.attached.fetching[0], target)
            calvin_remote.fetch(url, target, episodes, disk_gb, log=print)
            return str(target)
        self._stand_in("CALVIN", "the embedded play table", "attach CALVIN or a store of it, or set calvin_episodes")
        return ""

    def libero(self, given: str) -> str:
        """`libero_root` for the sections, by the same rule."""
        return given or self._found(self.attached.libero_root(), "LIBERO", "the embedded grocery table", "attach LIBERO's HDF5 files")

    def levir(self, given: str) -> str:
        """`levir_root` for the sections, by the same rule."""
        return given or self._found(self.attached.levir_root(), "LEVIR-CC", "embedded aerial pairs", "attach LEVIR-CC with its captions")

    def _found(self, path: Path | None, what: str, instead: str, step: str) -> str:
        if path is None:
            self._stand_in(what, instead, step)
            return ""
        print(f"{what}: {path}")
        return str(path)

    def _stand_in(self, what: str, instead: str, step: str) -> None:
        _banner(f"No {what} here: {instead} stands in for it. Every record says so; no number is comparable with a paper's.",
                f"For the real data: {step}.")  # fmt: skip

    # --------------------------------------------------------------------------------------------------- sections

    def section(self, name: str) -> None:
        """Called before each section's own cells: where we are, and how long this took when it was measured."""
        # NOT HERE YET, and to be called from here and from begin(): the session's clock (what is left, when a section must stop), going on
        # from an attached output, one job on two GPUs or two side by side, out of memory, the line every 30 s. Sections' own cells call
        # the training and evaluation that must know them.
        self.began.append((name, time.monotonic()))
        known = self.times.get(self.profile, {})
        about = clock(known.get("seconds", {}).get(name))
        measured = f", {about} when measured on {known['hardware']}" if about != "-" else ""
        print(f"section {self.sections.index(name) + 1} of {len(self.sections)}: {name}{measured}", flush=True)

    def finish(self) -> None:
        """Write sections.json, the report and results.zip; say what is in the output."""
        now, record = time.monotonic(), self._record()
        ends = [start for _, start in self.began[1:]] + [now]
        record["seconds"] = {name: round(end - start, 1) for (name, start), end in zip(self.began, ends, strict=False)}
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "sections.json").write_text(json.dumps(record, indent=1) + "\n")
        if any((self.work / "runs").glob("*.json")):
            from repro import results

            results.report(self.work)
        if machine.on_kaggle() == "Batch":
            self._thin()
        target = self.work.parent / "results.zip"
        files = sorted(path for path in self.work.rglob("*") if self._wanted(path))
        part = target.with_name("results.zip.part")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as out:
            for path in files:
                out.write(path, path.relative_to(self.work.parent))
        os.replace(part, target)
        for name, took in record["seconds"].items():
            print(f"  {name:<24} {clock(took)}")
        kinds = {"run records": ("runs", ".json"), "figures": ("figures", ".png")}
        counts = ", ".join(f"{sum(path.parent.name == folder and path.suffix == end for path in files)} {kind}"
                           for kind, (folder, end) in kinds.items())  # fmt: skip
        print(f"{target}: {len(files)} files ({counts}), {target.stat().st_size / 1e6:.1f} MB")

    def _record(self) -> dict:
        from repro.results import provenance

        known = provenance()
        return {"profile": self.profile, "library": os.environ.get("REPRO_BUNDLE", repro.__version__), "hardware": known["hardware"],
                "run_type": machine.on_kaggle(), "packages": known["packages"]}  # fmt: skip

    def _wanted(self, path: Path) -> bool:
        return path.is_file() and path.suffix in KEPT and path.relative_to(self.work).parts[0] not in LEFT

    def _thin(self) -> None:
        """Remove the raw files that the embedded default drew: thousands, which Kaggle is slow to save, and which are in the store."""
        for folder in (self.work / name for name in RAW):
            count = sum(path.is_file() for path in folder.rglob("*")) if folder.is_dir() and not folder.is_symlink() else 0
            if count:
                shutil.rmtree(folder)
                print(
                    f"removed {count} raw files of the embedded default, {folder.name}/: they are in the store, and drawn again when needed"
                )


def begin(profile: str, sections: str) -> Session:
    """Ready this session: disk, GPUs, packages, token, what is attached. UserError, with the next click, before hours are spent.

    `sections`: their names, with blanks between them.
    """
    profiles.get(profile)
    kaggle = machine.kaggle_root()
    working = kaggle / "working" if (kaggle / "working").is_dir() else Path.cwd()
    free = shutil.disk_usage(working).free / 1e9
    if free < (least := FREE_GB.get(profile, 2.0)):
        raise UserError(f"{working} is full", f"{least:.1f} GB free or more", f"{free:.1f} GB",
                        "delete old outputs there (!du -sh /kaggle/working/*), or start a new session")  # fmt: skip
    print(f"{working}: {free:.0f} GB free; Kaggle run type: {machine.on_kaggle() or 'none, this is not Kaggle'}")
    check_gpus(profile, gpus())
    attached = inputs.find(kaggle / "input")
    online = internet()
    environment.ensure(machine.root() / "pyproject.toml", profile, attached.wheels, online)
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"  # what is not attached fails at once, with the next step, instead of after minutes
    print(f"internet: {'on' if online else 'off'}; HF_TOKEN: {token()}")
    for line in attached.describe():
        print(f"attached: {line}")
    if attached.weightless:
        raise UserError(f"{attached.weightless[0]} is no whole model", "weights beside its config.json", "config.json alone",
                        f"{inputs.ATTACH}: the model itself, or remove this one")  # fmt: skip
    work = working / profile
    os.environ["REPRO_WORK"] = str(work)
    return Session(profile, sections.split(), work, attached, read_times(machine.root() / "kaggle" / "times.json"))


def gpus() -> list[tuple[str, tuple[int, int]]]:
    """(name, compute capability) of each GPU, by nvidia-smi; [] where there is none."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line] if done.returncode == 0 else []
    return [(name.strip(), tuple(int(part) for part in capability.strip().split("."))) for name, capability in rows]


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
            _banner("One GPU instead of two: the same result in about twice the time.", click)


def internet(timeout: float = 3.0) -> bool:
    """Whether the hub can be reached."""
    try:
        socket.create_connection(INTERNET, timeout).close()
    except OSError:
        return False
    return True


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


def _banner(*lines: str) -> None:
    print("\n".join([RULE, *(f"  {line}" for line in lines), RULE]), flush=True)
