"""The ReconVLA experiment of notebooks 05 to 10: its rows, its floors, and the run records they leave.

The paper's ablation (Table 2) has four trained rows: baseline, reconstruction of the whole image, of the gaze region, and of the gaze
region after pretraining. Beside them stand two cheap ways to be told where to look (predict the gaze box, or its mask), a model that is
trained blind, as the floor of a policy that cannot see, two rows whose language model was not taught to point before, and two of three
times the steps. `repro ablation` runs them all over seeds; the notebooks show some, once.
"""

import re
import shutil
from pathlib import Path

from repro.data.episodes import Store
from repro.evaluation.policies import load_policy
from repro.models.reconvla import ReconVLA
from repro.profiles import Profile
from repro.training import launch

ROWS = {  # name -> what it changes in the preset
    "baseline": {"recon": False},
    "whole": {"target": "whole"},
    "gaze": {},
    "gaze+pretrain": {},
    "gaze+pretrain without denoiser": {},
    "baseline+pretrain": {"recon": False},
    "box": {"recon": False, "aux": "box"},
    "mask": {"recon": False, "aux": "mask"},
    "blind": {"recon": False, "blind": True},
    "baseline untaught": {"recon": False},
    "gaze untaught": {},
    "baseline long": {"recon": False},
    "gaze long": {},
    "baseline plain": {"recon": False, "ordered_bins": False, "soft_bins": 0.0},
    "gaze plain": {"ordered_bins": False, "soft_bins": 0.0},
}
PRETRAINED = {  # row -> (row of the stage before, is its denoiser kept?)
    "gaze+pretrain": ("gaze", True), "gaze+pretrain without denoiser": ("gaze", False), "baseline+pretrain": ("baseline", True)}
LONG = {"baseline long": 3, "gaze long": 3}  # row -> times the steps, by a learning rate that falls as much later
CONTROL = {  # row -> what differs from it in the reconstruction alone
    "gaze untaught": "baseline untaught", "gaze+pretrain": "baseline+pretrain", "gaze long": "baseline long",
    "gaze plain": "baseline plain"}
UNTAUGHT = ("baseline untaught", "gaze untaught")  # rows whose language model begins at random: it was not taught to point
VARIANTS = {name: ROWS[name] for name in ("baseline", "whole", "gaze", "blind")}  # those of the notebooks
MARKS = (0.1, 0.25, 0.5, 0.75, 1.0)  # shares of the steps at which a run of `curve_seeds` is looked at
PRETRAINING_SEED = 1000  # of the episodes of the stage before, on top of the data's own seed


def folder(work: Path, row: str, seed: int = 0, corrupt: float = 0.0) -> Path:
    """Where one training run lies."""
    name = re.sub(r"[^a-z0-9]+", "-", row) + (f"-wrong{100 * corrupt:g}" if corrupt else "") + (f"-seed{seed}" if seed else "")
    return work / "train" / name


def parts(settings: Profile, work: Path, log=print, seed: int = 0, taught: bool = True) -> str:
    """The folder of the tiny parts, trained before all else (once); "" where the preset has its own. taught False: tower and VAE alone.

    Tower and VAE are the same for all seeds, frozen in every row. The language model, in which most of a policy's weights begin, learns
    anew for each seed, from pictures of its own: else the seeds of "baseline" would differ in the order of the frames alone.
    """
    config = launch.PRESETS[settings.preset]
    if not (config.vae == "tiny" or (config.vision == "tiny" and getattr(config, "freeze_vision", False))):
        return ""
    from repro.models import pointing, tiny_pictures, tiny_training

    training = Store(work / "store" / "training")
    states = tiny_pictures.recorded(training) if training.meta.get("simulator") == "tabletop" else None
    tiny_training.pretrain(work / "parts", tower_steps=settings.tower_steps, vae_steps=settings.vae_steps,
                  language_steps=settings.language_steps, states=states, pictures=settings.part_pictures, log=log)
    if taught and (seed == 0 or not settings.language_steps):
        return str(work / "parts")
    place = work / (f"parts-seed{seed}" if taught else "parts-untaught")
    for name in ("tower", "vae"):
        _copied(work / "parts" / name, place / name)
    if not taught:
        return str(place)
    pointing.pretrain_language(place, settings.language_steps, seed, states, settings.part_pictures, log=log)
    return str(place)


def _copied(part: Path, place: Path) -> None:
    """The same part in another folder, whole or absent; one that lies there already, which a run may be reading, is left alone."""
    told = place / "about.json"
    if told.is_file() and told.read_bytes() == (part / "about.json").read_bytes():
        return
    aside = place.with_name(f"{place.name}.part")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    shutil.copytree(part, aside)
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)


def _write_job(settings: Profile, work: Path, place: Path, row: str, seed: int, minutes: float | None, train: dict, **more) -> Path:
    validation = work / "store" / "validation"
    clock = {"budget_minutes": settings.budget_minutes if minutes is None else minutes, "checkpoint_minutes": settings.checkpoint_minutes}
    steps = train.get("steps", settings.train_steps)
    return launch.write_config(
        place.parent / f"{place.name}.json", folder=place, parts=parts(settings, work, seed=seed, taught=row not in UNTAUGHT),
        validation=str(validation) if validation.is_dir() else "",
        model={"preset": settings.preset, **ROWS[row]},
        train={"seed": seed, "steps": steps, "batch_size": settings.batch_size, "accumulate": settings.accumulate,
               "learning_rate": settings.learning_rate, "measure_every": max(10, steps // 20), "cpu_bfloat16": True,
               **dict(settings.optimizer), **clock, **train}, **more)  # fmt: skip


def job(settings: Profile, work: Path, row: str, seed: int, corrupt: float = 0.0, minutes: float | None = None) -> Path:
    """The config file of one training run, as `repro train` takes it. minutes: wall clock of this session (default: the profile's)."""
    marks = {"marks": MARKS} if row in ("baseline", "gaze") and seed in settings.curve_seeds and not corrupt else {}
    more = {}
    if row in PRETRAINED:
        before, kept = PRETRAINED[row]
        more = {"start": str(folder(work, f"pretraining {before}", seed)), "keep_denoiser": kept}
    steps = {"steps": LONG[row] * settings.train_steps} if row in LONG else {}
    return _write_job(settings, work, folder(work, row, seed, corrupt), row, seed, minutes, marks | steps, name=row,
                      store=work / "store" / "training", corrupt=corrupt, **({"corrupt_seed": seed} if corrupt else {}), **more)


def job_before(settings: Profile, work: Path, row: str, seed: int, minutes: float | None = None) -> Path:
    """The stage before a row of PRETRAINED: on other play tables, with the tokenizer and statistics of the rows' own data."""
    before = PRETRAINED[row][0]
    name, steps = f"pretraining {before}", {"steps": settings.pretrain_steps}
    return _write_job(settings, work, folder(work, name, seed), before, seed, minutes, steps, name=name,
                      store=work / "store" / "pretraining", like=str(work / "store" / "training"))


def load(work: Path, seed: int = 0, rows=tuple(VARIANTS)) -> dict[str, ReconVLA]:
    """Trained rows from their last checkpoints; `trained` on each says how far it got, on what, `minutes` how long it took."""
    return {row: load_run(folder(work, row, seed)) for row in rows}


def load_run(place: Path, path: Path | None = None):
    """The policy of a run's last checkpoint, or of `path`, one kept on the way."""
    return load_policy(path or place, run=place)


def parameters(models: dict[str, ReconVLA]) -> list[tuple[str, str, int]]:
    """(variant, part, number of parameters) of every part of every model."""
    return [(name, part, sum(p.numel() for p in module.parameters()))
            for name, model in models.items() for part, module in model.named_children()]
