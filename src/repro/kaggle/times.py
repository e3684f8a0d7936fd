"""How long each section took when it was measured: kaggle/times.json, which built notebooks show and carry."""

import json
from pathlib import Path

from repro import freshness, notebooks, profiles
from repro.machine import UserError


def clock(value: float | None) -> str:
    """ "39 s", "2 min 05 s", "3 h 10 min"; a dash where there is no measurement."""
    return "-" if value is None else notebooks._clock(value)


def read_times(path: Path) -> dict:
    """{profile: {"hardware", "seconds": {section: seconds}}} of measured runs; {} where none was kept."""
    return json.loads(path.read_text()) if path.is_file() else {}


def keep_times(root: Path, work: Path) -> None:
    """Take the times of a finished run (its work folder, of Kaggle or of `repro run`) as the estimates of the next build."""
    if not work.is_dir():
        raise UserError(f"there is no folder {work}", "the work folder of a finished run", next_step="give a folder such as work/smoke")
    try:
        if (work / "sections.json").is_file():  # session.finish wrote it
            found = json.loads((work / "sections.json").read_text())
            finished = {name: took for name, took in found["seconds"].items() if found.get("state", {}).get(name, "finished") == "finished"}
            profile, new = found["profile"], {"hardware": found["hardware"], "seconds": finished}
        else:  # `repro run` did, and the run records say where
            one = json.loads(next((work / "runs").glob("*.json"), work / "runs" / "*.json").read_text())
            profile, new = (
                work.name,
                {"hardware": one["hardware"], "seconds": json.loads((work / "notebooks" / "durations.json").read_text())},
            )
        profiles.get(profile)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{work} is no work folder of a finished run", "sections.json, or notebooks/durations.json and runs/*.json",
                        f"{type(error).__name__}: {error}", "give a folder such as work/smoke") from error  # fmt: skip
    target = root / "kaggle" / "times.json"
    old = read_times(target)
    new["seconds"] = {**old.get(profile, {}).get("seconds", {}), **new["seconds"]}  # what this run did not run keeps its time
    target.parent.mkdir(exist_ok=True)
    freshness.write(target, {name: one for name, one in sorted({**old, profile: new}.items())})
