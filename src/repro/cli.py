"""The `repro` command: doctor | run | train | evaluate | ablation | table | publish | calvin. `repro COMMAND --help` explains each.

Starts in a fraction of a second: what is heavy is imported by the command that needs it.
"""

import json
import os
import sys
from pathlib import Path

import click

import repro
from repro import clock, machine
from repro.evaluation.commands import evaluate
from repro.gaze.commands import gaze
from repro.machine import UserError

PROFILE = click.option("--profile", default="smoke", show_default=True, help="smoke | cpu | t4 | paper")


DISK = "give another file or folder, or rights to this one, or free space; REPRO_TRACEBACK=1 shows where it happened"
HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=HELP)
@click.version_option(repro.__version__, prog_name="repro")
def cli() -> None:
    """Reproduce vision-language-action papers: data, gaze crops, training, attention, tables."""


@cli.command()
@PROFILE
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with the machine's description.")
@click.option("--sim", metavar="tabletop|calvin|libero", help="Examine this simulator instead: version, picture, settling, bits, speed.")
def doctor(profile: str, as_json: bool, sim: str | None) -> None:
    """Is this machine ready? [OK], [WARN] or [FAIL], each with the next step. Exit code 1 on a FAIL."""
    from repro import doctor as examination
    from repro import profiles

    profiles.get(profile)
    if sim:
        from repro import sim_doctor

        found = sim_doctor.checks(sim)
    else:
        found = examination.checks(profile)
    if as_json:
        click.echo(json.dumps(examination.as_json(found), indent=1))
    else:
        examination.show(found, click.echo)
    sys.exit(any(check.status == examination.FAIL for check in found))


@cli.command()
@PROFILE
@click.option("--only", multiple=True, metavar="NN", help="Only this notebook, e.g. 05; may be repeated.")
@click.option("--from", "start", metavar="NN", help="This notebook and those after it.")
@click.option("--fresh", is_flag=True, help="Run also what is unchanged.")
@click.option("-p", "parameters", type=(str, str), multiple=True, metavar="NAME VALUE", help="A notebook's parameter, e.g. -p seed 1.")
def run(profile: str, only: tuple[str, ...], start: str | None, fresh: bool, parameters: tuple[tuple[str, str], ...]) -> None:
    """Run the numbered notebooks in order, headless. Skips those whose inputs and code are unchanged."""
    from repro import machine, notebooks

    given = dict(parameters)
    if "profile" in given:
        raise UserError("the profile is not given by -p", found=f"-p profile {given['profile']}", next_step="use --profile")
    try:
        notebooks.run(profile, only, start, fresh, given, echo=_echo)
    except notebooks.NotebookFailed as failure:
        click.echo(str(failure), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    click.echo(f"executed notebooks: {machine.work(profile) / 'notebooks'}")


def _echo(text: str, end: str = "\n", flush: bool = True) -> None:
    click.echo(text + end, nl=False)


@cli.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def train(config: Path) -> None:
    """Train as CONFIG (json) says, in this process; on a folder that holds a checkpoint, resume."""
    from repro.training.launch import train_from_config

    train_from_config(config)


def _numbers(kind: type, high: float = float("inf"), **words):
    """A callback that reads comma-separated numbers in [0, high], or a word that stands for some."""
    def read(context, option, text: str | None) -> tuple | None:
        try:
            found = None if text is None else words[text] if text in words else tuple(map(kind, text.split(",")))
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not comma-separated numbers, e.g. 0,1") from error
        if not all(0 <= number <= high for number in found or ()):  # NaN is in no range
            raise click.BadParameter(f"{text!r} is not comma-separated numbers in [0, {high:g}], e.g. 0,1")
        return found
    return read


@cli.command()
@click.option("--system", type=click.Choice(["reconvla", "vggt_vla", "change_agent"]), default="reconvla", show_default=True,
              help="Whose rows.")
@click.option("--profile", default="cpu", show_default=True, help="smoke | cpu | t4 | paper")
@click.option("--rows", help="Comma-separated (default: the profile's).")
@click.option("--seeds", callback=_numbers(int), help="Comma-separated.")
@click.option("--corrupt", callback=_numbers(float, 1, none=()),
              help="Shares of wrong gaze boxes, comma-separated, e.g. 0.08,0.33,1; none: without.")
@click.option("--minutes", type=click.FloatRange(min=0), default=0.0,
              help="Stop before so much wall clock is over, ready to go on; 0: no limit.")
@click.option("--slots", type=click.IntRange(min=1), help="Runs at a time (default: one a core or GPU).")
@click.option("--join", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Records of another machine or session (results/cpu/runs/ablation): their runs are not done again. With --tables: "
                   "tables of these records alone, without data.")
@click.option("--tables", is_flag=True, help="Only tables and figures of what is done, into the work folder.")
@click.option("--publish", is_flag=True, help="Only these, with the records, into results/<profile>.")
@click.option("--one", hidden=True)
def ablation(system: str, profile: str, rows: str | None, seeds: tuple | None, corrupt: tuple | None, minutes: float, slots: int | None,
             join: Path | None, tables: bool, publish: bool, one: str | None) -> None:
    """Every row over seeds: train, evaluate, look, record. Call it again until all is done; what is done is kept."""
    from dataclasses import replace
    from importlib import import_module

    from repro import profiles
    from repro import seeds as over

    settings, work = profiles.get(profile), machine.work(profile)
    name, its_seeds = {"reconvla": ("ablation", "seeds"), "vggt_vla": ("vla_ablation", "vla_seeds"),
                       "change_agent": ("change_ablation", "agent_seeds")}[system]
    of = import_module(f"repro.{name}")
    if system != "reconvla" and (rows or corrupt is not None):
        raise UserError(f"{system}'s rows are always all of them, as they are", "--seeds alone", "--rows or --corrupt")
    if system == "change_agent" and join and not tables:
        raise UserError("the change agent's records do not say what was asked for, so none is taken over", "--join with the other systems",
                        f"--join {join}", "leave it out: its runs take minutes")
    if join and publish:
        raise UserError("--join does nothing with --publish", "--join with a run, which takes records over, or with --tables",
                        next_step="run it once with --join and --minutes 1, then publish")
    if one:
        over.one(of, settings, work, one, minutes, click.echo)
        return
    given = {its_seeds: seeds, "few_seeds": seeds, "rows": rows and tuple(rows.split(",")), "few_rows": () if rows else None,
             "corrupt": corrupt}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    of.runs(settings)  # refuses rows that there are not
    runs = {"--rows": rows, "--seeds": seeds, "--corrupt": corrupt, "--minutes": minutes, "--slots": slots}
    unused = [name for name, value in runs.items() if value]
    if tables and unused:
        raise UserError(f"{', '.join(unused)} {'do' if len(unused) > 1 else 'does'} nothing with --tables",
                        "--tables alone, of all runs that are done", next_step="leave it out: the tables show every row")
    if publish:
        of.publish(work, machine.root() / "results" / profile, of.draw(settings, work), click.echo)
        return
    try:
        left = [] if tables else over.run(of, settings, work, minutes, slots, click.echo, join)
    except KeyboardInterrupt:
        click.echo("stopped; what is done is kept: the same command goes on from there, a training from its last checkpoint", err=True)
        sys.exit(130)
    records = of.write(work, click.echo, over.given(of, join) if tables and join else None)
    if left and not records:
        click.echo("no run is whole yet: the same command goes on")
        return
    if not records:
        place = of.place(work, over.Run("gaze", 0)).parent
        steps = [f"repro ablation --system {system} --profile {profile}   # does them", *_ablations(profile, system)]
        raise UserError("no run of the ablation is done", f"RUN/done.json in {place}", "none" if place.is_dir() else "no such folder",
                        "\n    ".join(steps))
    click.echo(of.markdown(records))


def _ablations(profile: str, only: str = "") -> list[str]:
    """Commands that show the ablations' records there are of a profile, published or here; only: of this system."""
    tops = (machine.root() / "results" / profile / "runs", machine.work(profile) / "runs")
    found = [(name.replace("ablation", "reconvla"), top / name) for top in tops for name in ("ablation", "vggt_vla", "change_agent")
             if any((top / name).glob("*.json"))]
    return [f"repro ablation --system {system} --profile {profile} --tables --join {os.path.relpath(folder)}   # records there are"
            for system, folder in found if only in ("", system)]


@cli.command()
@PROFILE
def table(profile: str) -> None:
    """Print the result tables, computed from the run records of a profile."""
    from repro import machine, profiles, results, run_records

    profiles.get(profile)
    for folder in (machine.work(profile), machine.root() / "results" / profile):
        if any((folder / "runs").glob("*.json")):
            papers = [results.claims(path) for path in sorted(machine.root().glob("papers/*/claims.toml"))]
            for kind, *content in results.blocks(run_records.load_all(folder / "runs"), papers):
                if kind != "figure":
                    click.echo(results.markdown(*content) + "\n" if kind == "table" else f"{'## ' * (kind == 'heading')}{content[0]}\n")
            click.echo(f"report: {folder / 'report.html'}" if (folder / "report.html").is_file() else f"records: {folder / 'runs'}")
            return
    others = _ablations(profile)
    raise UserError(
        f"no run records of profile {profile}",
        expected=f"JSON files in {machine.work(profile) / 'runs'} or results/{profile}/runs",
        found="ablations' records alone, in folders of their own" if others else "none",
        next_step="\n    ".join([f"repro run --profile {profile}", *others]),
    )


@cli.command()
@PROFILE
def publish(profile: str) -> None:
    """Copy freshly executed notebooks, records, figures and report to results/<profile>, ready to commit."""
    from repro.publish import publish as to_results

    to_results(profile, echo=_echo)


@cli.group()
def sims() -> None:
    """The real simulators, each in an environment of its own."""


@sims.command("setup")
@click.argument("name", metavar="calvin|libero")
@click.option("--python", help="The Python to use (default: 3.11 where there is one).")
def sims_setup(name: str, python: str | None) -> None:
    """Make the environment of CALVIN's or LIBERO's simulator, and say what else is needed."""
    from repro.sims import environments

    environments.setup(name, python, click.echo)
    if name == "calvin":
        try:
            click.echo(f"calvin: checkout {environments.calvin_root()}")
        except UserError as error:
            click.echo(f"calvin: still to do\n{error}")


@cli.group()
def demos() -> None:
    """Write demonstrations of the scripted experts in the official formats. Scripted, not human: the data say so."""


@demos.command("calvin")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--scenes", default="D", show_default=True, help="Of training/, e.g. ABC.")
@click.option("--validation-scene", default="D", show_default=True)
@click.option("--tasks", help="Names, comma-separated (default: all 34).")
@click.option("--per-task", type=click.IntRange(min=1), default=20, show_default=True, help="Episodes of each task in each training scene.")
@click.option("--validation-per-task", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--renderer", default="tiny", show_default=True, help="tiny (CPU) | egl; train and test with one.")
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
def demos_calvin(folder: Path, scenes: str, validation_scene: str, tasks: str | None, per_task: int, validation_per_task: int,
                 renderer: str, seed: int, workers: int) -> None:
    """CALVIN's own simulator, CALVIN's layout, with true boxes."""
    from repro.sims import calvin_layout, environments

    launch = lambda scene: environments.launch("calvin", scene=scene, renderer=renderer)
    launch(validation_scene)  # what is missing is said before anything is written
    calvin_layout.write(folder, tuple(scenes), tuple(tasks.split(",")) if tasks else None, per_task, validation_per_task, validation_scene,
                        seed, workers, launch, click.echo)
    click.echo(f"written: {folder}; next: repro calvin import {folder} STORE --split training")


@demos.command("libero")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--suite", type=click.Choice(["libero_object", "libero_spatial", "grocery"]), default="libero_object", show_default=True,
              help="grocery: embedded, no MuJoCo.")
@click.option("--tasks", help="Numbers or names, comma-separated (default: all).")
@click.option("--per-task", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--layout", default="official", show_default=True, help="official | wide: target +-7 cm, basket +-5 cm (libero_object).")
@click.option("--assets", help="LIBERO's asset folder (default: REPRO_LIBERO_ASSETS, or inside hf-libero).")
@click.option("--noise", callback=_numbers(float), default="0", show_default=True,
              help="Scales of the disturbance, comma-separated, one drawn an episode.")
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True,
              help="Steps between pictures; above 1 the files are no longer LIBERO's own layout.")
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
def demos_libero(folder: Path, suite: str, tasks: str | None, per_task: int, layout: str, assets: str | None, noise: tuple[float, ...],
                 every: int, seed: int, workers: int) -> None:
    """LIBERO's own simulator, or the embedded grocery table, LIBERO's HDF5 files."""
    from repro.data import libero_hdf5
    from repro.sims import environments

    embedded = suite == "grocery"
    options = {"orientation": "raw", **({"assets": assets} if assets else {})}
    chosen = [int(task) if task.isdigit() else task for task in tasks.split(",")] if tasks else range(6 if embedded else 10)
    launch = lambda name: environments.launch("grocery" if embedded else "libero", suite=name, **options)
    libero_hdf5.write(folder, suite, chosen, per_task, layout, seed, workers, launch, list(noise), every=every,
                      log=click.echo)
    click.echo(f"written: {folder / suite}; next: repro libero import {folder / suite} STORE")


@cli.command()
@click.argument("name", metavar="calvin|libero")
@click.option("--profile", default="cpu", show_default=True, help="How much: smoke | cpu | t4")
@click.option("--seed", default=0, show_default=True)
@click.option("--parts", type=click.Path(path_type=Path), help="calvin: ReconVLA's tiny parts, e.g. work/cpu/parts (default: made here).")
@click.option("--publish", is_flag=True, help="Only copy records and films of both simulators to results/sims, ready to commit.")
def simulate(name: str, profile: str, seed: int, parts: Path | None, publish: bool) -> None:
    """Scripted demonstrations, small policies, their floors and scores in CALVIN's or LIBERO's own simulator."""
    from repro import machine, real, real_tables, results

    if publish:
        real.publish(profile, seed, click.echo)
        return
    if parts and name != "calvin":
        raise UserError("only ReconVLA has tiny parts", "simulate calvin --parts FOLDER", name)
    records = real.run(name, profile, seed, click.echo, **({"parts": parts} if parts else {}))
    click.echo(results.markdown(*real_tables.real_table(records)))
    click.echo(f"records, films: {machine.work(profile) / 'sims' / name}")


@cli.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def calvin(arguments: tuple[str, ...]) -> None:
    """Prepare CALVIN data: `repro calvin --help` lists the commands."""
    from repro.data.calvin_commands import calvin as commands

    commands.main(args=list(arguments), prog_name="repro calvin")


@cli.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def libero(arguments: tuple[str, ...]) -> None:
    """Read LIBERO data: `repro libero --help` lists the commands."""
    from repro.data.libero_commands import libero as commands

    commands.main(args=list(arguments), prog_name="repro libero")


@cli.command("kaggle", context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def on_kaggle(arguments: tuple[str, ...]) -> None:
    """Build, upload and fetch the Kaggle notebooks: `repro kaggle --help` lists the commands."""
    from repro.kaggle.commands import kaggle as commands

    commands.main(args=list(arguments), prog_name="repro kaggle")


@cli.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def store(arguments: tuple[str, ...]) -> None:
    """Fetch stores out of remote zips, push them to Kaggle: `repro store --help` lists the commands."""
    from repro.kaggle.commands import store as commands

    commands.main(args=list(arguments), prog_name="repro store")


cli.add_command(evaluate)
cli.add_command(gaze)


def main() -> None:
    """Entry point: a UserError is for the reader, without a traceback (exit code 2). Out of time is no failure (exit code 0).

    So is a disk's refusal (an OSError with its number); with REPRO_TRACEBACK=1 that one is shown with all its lines."""
    try:
        cli()
    except clock.OutOfTime as stopped:
        click.echo(f"{stopped}; what is done is kept: the same command goes on from there")
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno is None or os.environ.get("REPRO_TRACEBACK"):
            raise
        what = f"{error.filename} cannot be read or written" if error.filename else "a file cannot be read or written"
        click.echo(f"error: {UserError(what, found=error.strerror or error, next_step=DISK)}", err=True)
        sys.exit(2)
