"""What an uploaded notebook calls: begin, the roots of the data, each section, finish. Works in any folder that is shaped like Kaggle's.

The root is /kaggle, or REPRO_KAGGLE_ROOT: <root>/input is looked through and never written, <root>/working gets everything but what is
made again when it is gone: prepared pictures, in <root>/tmp, which Kaggle does not save.
Training runs in processes of its own, and GPUs are asked for by nvidia-smi. This process uses one only in the sections that look at
trained models; when such a section ends, its tensors move to the CPU, and what stays on the GPU is CUDA's context.
A session has an end (`session_hours`). Where it comes before the work is done, the cell that runs stops, later ones do nothing (cells.py),
`finish` says what is left, and the next session, with this one's output attached, goes on (earlier.py).
"""

import math
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import repro
from repro import clock, machine, profiles
from repro.kaggle import cells, earlier, environment, inputs, summary
from repro.kaggle.checks import banner, check_gpus, gpus, internet, scratch, share_gpus, token, use_hub
from repro.kaggle.earlier import Earlier
from repro.kaggle.times import clock as duration
from repro.kaggle.times import read_times
from repro.machine import UserError

FREE_GB = {"smoke": 0.5}  # less free disk than this in working/ and a run is not begun; other profiles: 2
NEXT = "attach this notebook's output as an input (right panel, Add Input, Your Work, this notebook), then Run All: it goes on"
LIMIT = 12.0  # hours, Kaggle's
LEAST = 60.0  # seconds of the session that a section needs to begin
TRAINABLE = 100  # annotated segments; fewer show the pipeline and train nothing
READERS = {"CALVIN": "01_", "LIBERO": "02_", "LEVIR-CC": "03_"}  # data -> the one section that reads it raw


@dataclass
class Session:
    """One run of an uploaded notebook: what is attached, how far its sections are, how long each took.

    Sections are first come, first served: each takes what it needs of the session, and what does not fit is left to the next one. They get
    no shares of the time, for a later one needs the result of the one before, and what would be evaluated of a model that is not done is
    out of date in the next session. After two minutes each long stage says whether it will be done in this one (clock.Progress).
    """

    profile: str
    sections: list[str]
    work: Path
    attached: inputs.Inputs
    times: dict
    parameters: dict = field(default_factory=dict)
    earlier: Earlier | None = None  # the session that this one goes on from
    done: list[str] = field(default_factory=list)  # sections that it finished, and that are not done again
    state: dict[str, str] = field(default_factory=dict)  # section -> finished | cut | failed | begun
    took: dict[str, float] = field(default_factory=dict)  # section -> seconds in this session
    data: dict[str, str] = field(default_factory=dict)  # CALVIN, LIBERO, LEVIR-CC -> embedded | real
    here: dict[str, str] = field(default_factory=dict)  # the same, of what was run in this very work folder before
    descends: list[float] = field(default_factory=list)  # as in sections.json (earlier.py)
    over: str = ""  # why the session is over
    skipping: bool = False  # the section that was called last is one of `done`
    current: str = ""
    since: float = 0.0

    # ------------------------------------------------------------------------------------------------------- data

    def calvin(self, given: str, episodes: int = 0, url: str = "", disk_gb: float = 12.0) -> str:
        """`calvin_root` for the sections: as given, as attached, as fetched, else "" for the embedded default, with a banner."""
        if self._is_done("CALVIN"):
            return given
        if given:
            self._is("CALVIN", "real")
            return given
        if found := self.attached.calvin_root():
            self._is("CALVIN", "real")
            from repro.data.calvin import Calvin

            count = len(Calvin(found).split("training").annotations)
            print(f"CALVIN: {found}, {count} annotated segments to train on")
            if count < TRAINABLE:
                banner(f"{count} annotated segments are enough to see the pipeline, not to train.", "Attach more, or set calvin_episodes.")
            return str(found)
        if episodes:
            self._is("CALVIN", "real")
            from repro.kaggle import fetched

            return str(fetched.episodes(self.profile, self.work, self.attached, self.earlier, url, episodes, disk_gb))
        self._stand_in("CALVIN", "the embedded play table", "attach CALVIN or a store of it, or set calvin_episodes")
        return ""

    def libero(self, given: str) -> str:
        """`libero_root` for the sections, by the same rule."""
        return self._found(given, self.attached.libero_root, "LIBERO", "the embedded grocery table", "attach LIBERO's HDF5 files")

    def levir(self, given: str) -> str:
        """`levir_root` for the sections, by the same rule."""
        return self._found(given, self.attached.levir_root, "LEVIR-CC", "embedded aerial pairs",
                           "attach LEVIR-MCI (LEVIR-CC's pairs with masks)")  # fmt: skip

    def _found(self, given: str, root, what: str, instead: str, step: str) -> str:
        if self._is_done(what):
            return given
        if given:
            self._is(what, "real")
            return given
        if path := root():
            self._is(what, "real")
            print(f"{what}: {path}")
            return str(path)
        self._stand_in(what, instead, step)
        return ""

    def _stand_in(self, what: str, instead: str, step: str) -> None:
        self._is(what, "embedded")
        banner(f"No {what} here: {instead} stands in for it. Every record says so; no number is comparable with a paper's.",
                f"For the real data: {step}.")  # fmt: skip

    def _is_done(self, what: str) -> bool:
        """Whether the section that reads this data was finished before: its store came with the earlier output, nothing is looked for."""
        reader = next((name for name in self.done if name.startswith(READERS[what])), "")
        if reader and self.earlier:
            self.data[what] = self.earlier.data.get(what, "")
            print(f"{what}: {reader} was finished in an earlier session, and its store is here")
        return bool(reader)

    def _is(self, what: str, kind: str) -> None:
        """Keep which kind of data it is. UserError where the earlier session, or what was run here before, had the other: the two are
        never mixed."""
        before = (self.earlier.data.get(what) if self.earlier else "") or self.here.get(what) or kind
        if before != kind:
            had = {"real": f"{what} was attached or fetched", "embedded": f"a stand-in for {what}"}
            click = f"{'attach' if before == 'real' else 'remove'} {what} (right panel, Input)"
            place = self.earlier.folder if self.earlier else self.work
            raise UserError(f"the earlier session was run on other data than is here now ({place})",
                            had.get(before), had[kind], f"to go on: {click}; to begin anew: remove the earlier output, and in a live "
                            f"session !rm -r {self.work}; then Run All")  # fmt: skip
        self.data[what] = kind

    # --------------------------------------------------------------------------------------------------- sections

    def section(self, name: str) -> None:
        """Called before each section's own cells: where we are, how long this took when it was measured, whether it is done already.

        OutOfTime where less than a minute is left.
        """
        self._close("finished")
        head = f"section {self.sections.index(name) + 1} of {len(self.sections)}: {name}"
        self.skipping = name in self.done
        if self.skipping:
            print(f"{head}, finished in an earlier session: its cells do nothing, its figures and tables are shown at the end", flush=True)
            return
        if self.over:
            raise clock.OutOfTime(self.over)
        if clock.left() < LEAST:
            raise clock.OutOfTime(f"{clock.in_words(max(0.0, clock.left()))} were left before {name}")
        self.current, self.since, self.state[name] = name, clock.now(), "begun"
        self._save()
        known = self.times.get(self.profile, {})
        about = duration(known.get("seconds", {}).get(name))
        measured = f", {about} when measured on {known['hardware']}" if about != "-" else ""
        left = "" if math.isinf(clock.left()) else f"; {clock.in_words(clock.left())} of the session left"
        print(f"{head}{measured}{left}", flush=True)

    def _close(self, state: str) -> None:
        """The section that runs, if one does, ends as `state`."""
        if self.current:
            if state != "finished" or self.state[self.current] == "begun":  # what failed or was stopped by hand stays so
                self.state[self.current] = state
            self.took[self.current] = self.took.get(self.current, 0.0) + clock.now() - self.since
            if self.current.startswith(READERS["CALVIN"]) and self.state[self.current] == "finished":
                from repro.kaggle import fetched

                fetched.drop(self.work)
            self.current = ""
            cells.free_gpus()

    def stop(self, why: str) -> None:
        """The session's time is over: what runs is cut, what comes is left to the next session. cells.py calls it, and who has no cells."""
        where, self.over = self.current, why
        self._close("cut")
        self._save(why)
        banner(f"{why[:1].upper()}{why[1:]}. {f'{where} is cut: w' if where else 'W'}hat is done is on disk.",
                "The cells that follow do nothing, but the last one, which packs the results and says how to go on.")  # fmt: skip

    def interrupted(self) -> None:
        """The stop button: what is done stays; the section counts as cut until it is run again."""
        if self.current:
            where, why = self.current, "stopped by hand"
            self.state[where] = "cut"
            self._save(why)
            print(f"{where}: {why}; what is done is on disk, left: {', '.join(self._left())}")
            print("to go on, run the cells from its kit.section on; the last one packs the results of what is done")

    def failed(self, kind: str) -> None:
        """A cell's real error: its section is not finished, whatever runs after it."""
        if self.current:
            self.state[self.current] = "failed"
            self._save(kind)

    def _seconds(self) -> dict[str, float]:
        """Of each section that was begun, in all sessions."""
        before = self.earlier.seconds if self.earlier else {}
        return {name: round(self.took.get(name, 0.0) + before.get(name, 0.0), 1)
                for name in self.sections if name in self.took or name in before}  # fmt: skip

    def _read(self) -> dict[str, str]:
        """What `data` is of those that were read, here or before; a stand-in that was only announced may still be replaced."""
        before = {*self.here, *(self.earlier.data if self.earlier else ())}
        begun = lambda what: any(name.startswith(READERS[what]) for name in self.state)
        return {what: kind for what, kind in self.data.items() if what in before or begun(what)}

    def _save(self, why: str = "", **more) -> None:
        session = self.earlier.session + 1 if self.earlier else 1
        state = {name: self.state[name] for name in self.sections if name in self.state}
        about = {"profile": self.profile, "library": _library(), "session": session, "saved": clock.now(), "state": state, "why": why,
                 "seconds": self._seconds(), "parameters": self.parameters, "data": self._read(), "descends": self.descends,
                 **more}  # fmt: skip
        try:
            earlier.write(self.work, about)
        except OSError as error:  # an error here would leave a cell's `with`, or IPython's hook, and take the session's end with it
            print(f"{self.work / earlier.NAME} could not be written ({error}); look for room: !du -sh {self.work.parent}/*")

    def finish(self) -> None:
        """Write sections.json, the report, results.zip; say what is done, cut and left, and how to go on; show each figure and table.

        What cannot be made is said, with the reason; the rest is made all the same.
        """
        from repro import results, run_records

        self._close("finished")
        packed = "results.zip was not written"
        if any((self.work / "runs").glob("*.json")):
            with _said_only("the report"):
                results.report(self.work)
        known = run_records.provenance()
        self._save(self.over, hardware=known["hardware"], run_type=machine.on_kaggle(), packages=known["packages"])
        if machine.on_kaggle() == "Batch":
            summary.thin(self.work)
        with _said_only("results.zip"):
            packed = summary.pack(self.work)
        print("\n".join([*self._said(), packed]), flush=True)
        summary.show(self.work)
        cells.unwatch()

    def _said(self) -> list[str]:
        """A line a section, and what comes next."""
        lines, took = [], self._seconds()
        for name in self.sections:
            state = self.state.get(name, "not begun")
            why = {"cut": f": {self.over or 'stopped by hand'}", "failed": ": an error, see its cell",
                   "finished": " in an earlier session" if name in self.done else ""}.get(state, "")  # fmt: skip
            lines.append(f"  {name:<24} {duration(took.get(name)):<14} {state}{why}")
        if left := self._left():
            return [*lines, f"left: {', '.join(left)}", f"to go on: {NEXT}"]
        return [*lines, f"all {len(lines)} sections are finished"]

    def _left(self) -> list[str]:
        return [name for name in self.sections if self.state.get(name) != "finished"]


def begin(profile: str, sections: str, session_hours: float = 11.0, gpus_per_run: int = 1, parameters: dict | None = None) -> Session:
    """Ready this session: clock, disk, GPUs, packages, token, what is attached. UserError, with the next click, before hours are spent.

    `sections`: their names, with blanks between them. `session_hours`: its length from the start of this process, 0 without an end.
    `gpus_per_run`: 1, as many runs side by side as there are GPUs; 2, each run on both. `parameters`: of the sections; an earlier
    session's sections count as finished where theirs were the same.
    """
    profiles.get(profile)
    kaggle = machine.kaggle_root()
    working = kaggle / "working" if (kaggle / "working").is_dir() else Path.cwd()
    free = shutil.disk_usage(working).free / 1e9
    if free < (least := FREE_GB.get(profile, 2.0)):
        raise UserError(f"{working} is full", f"{least:.1f} GB free or more", f"{free:.1f} GB",
                        "delete old outputs there (!du -sh /kaggle/working/*), or start a new session")  # fmt: skip
    print(f"{working}: {free:.0f} GB free; Kaggle run type: {machine.on_kaggle() or 'none, this is not Kaggle'}")
    if (kaggle / "working").is_dir():
        os.environ["REPRO_SCRATCH"] = str(place := scratch(kaggle))
        print(f"{place}: {shutil.disk_usage(place).free / 1e9:.0f} GB free, for prepared pictures; it is not saved")
    found = gpus()
    check_gpus(profile, found)
    share_gpus(gpus_per_run, len(found))
    attached = inputs.find(kaggle / "input")
    online = internet()
    environment.ensure(machine.root() / "pyproject.toml", profile, attached.wheels, online)
    use_hub(online)
    print(f"internet: {'on' if online else 'off'}; HF_TOKEN: {token()}")
    for line in attached.describe():
        print(f"attached: {line}")
    if attached.weightless:
        raise UserError(f"{attached.weightless[0]} is no whole model", "weights beside its config.json", "config.json alone",
                        f"{inputs.ATTACH}: the model itself, or remove this one")  # fmt: skip
    work = working / profile
    kit = Session(profile, sections.split(), work, attached, read_times(machine.root() / "kaggle" / "times.json"), parameters or {})
    go_on(kit)
    set_end(session_hours)  # after the packages: psutil may be one of them
    os.environ["REPRO_WORK"] = str(working)
    kit._save()
    cells.watch(kit)
    return kit


def go_on(kit: Session) -> None:
    """Take over what an attached output of an earlier session holds: its files, and the sections that need not be done again."""
    if kit.attached.torn:
        raise UserError(f"{kit.attached.torn[0]} looks like an earlier session's output, but {earlier.NAME} is missing",
                        f"{earlier.NAME}, which every session writes", "a store without it", earlier.AGAIN)  # fmt: skip
    before, own = earlier.choose(kit.attached.outputs, kit.profile), earlier.here(kit.work)
    kit.descends = own.descends if own else []
    kit.here = own.data if own else {}
    kit.data.update(kit.here)
    if before is None:
        return
    print(f"goes on with {before.folder}, session {before.session}, {before.when}: {before.in_words()}")
    mixed = [what for what, kind in kit.here.items() if before.data.get(what, kind) != kind]
    if mixed and before.saved not in kit.descends:
        raise UserError(f"{kit.work} was made of other data than {before.folder}", f"{before.data} as there", kit.here,
                        f"{mixed[0]} is a stand-in in one of them: !rm -r {kit.work}, then Run All")  # fmt: skip
    newer = before.saved in kit.descends  # what is here went on from it before
    earlier.take(before, kit.work)
    kit.data.update(before.data)
    kit.earlier, kit.descends = before, list(dict.fromkeys([before.saved, *before.descends, *kit.descends]))
    other = sorted(name for name in kit.parameters.keys() | before.parameters.keys()
                   if kit.parameters.get(name) != before.parameters.get(name))  # fmt: skip
    if before.library != _library():
        print(f"it was made by another library ({before.library or 'unknown'}; this is {_library()}): its files are used but for its "
              "records and report, every section runs again and takes up what still fits")  # fmt: skip
    elif other:
        changed = ", ".join(f"{name} {before.parameters.get(name)!r} -> {kit.parameters.get(name)!r}" for name in other)
        print(f"its parameters were others ({changed}): its files are used, every section runs again and takes up what still fits")
    else:
        for name in kit.sections:  # up to the first that is not finished: what comes after it needs it
            if before.state.get(name) != "finished":
                break
            kit.done.append(name)
            kit.state[name] = "finished"
    if before.library != _library() and not newer:
        for path in (*(kit.work / "runs").glob("*.json"), *kit.work.glob("report.*")):  # made again: none of another library stands beside
            path.unlink()


@contextmanager
def _said_only(what: str):
    """A full disk, or a file of ours that cannot be read, is said and goes no further."""
    try:
        yield
    except (OSError, UserError) as error:
        print(f"{what} could not be made: {error}")


def set_end(hours: float) -> None:
    """The session ends so many hours after this process began, for all processes that it starts; said. 0: no end."""
    if not (hours >= 0 and math.isfinite(hours)):
        raise UserError("`session_hours` is no length of a session", "hours, 0 for no end; Kaggle's own limit is 12", hours,
                        "correct it in the parameters cell, then Run All")  # fmt: skip
    if machine.on_kaggle() and not 0 < hours < LIMIT:
        banner(f"Kaggle ends a session after {LIMIT:g} h, and may keep nothing of it.", "Set session_hours = 11, in the parameters cell.")
    clock.begin(0)
    if not hours:
        print("session: no end is set (session_hours = 0)")
        return
    clock.begin(60 * hours - (clock.now() - began()) / 60 or -1.0)
    print(f"session: {hours:g} h from the start of this notebook's process, {clock.in_words(max(0.0, clock.left()))} of them left; "
          "what is not done by then is left to the next session")  # fmt: skip


def began() -> float:
    """When this process, the notebook's kernel, was started, in seconds since 1970: what was spent on setting up counts."""
    import psutil

    return psutil.Process().create_time()


def _library() -> str:
    return os.environ.get("REPRO_BUNDLE", repro.__version__)
