"""The commands `repro libero look` and `repro libero import`."""

from pathlib import Path

import click

from repro.data.libero import GRIPPER, UPRIGHT, import_libero
from repro.data.libero_sources import sources_of


@click.group("libero", help="Read LIBERO data: original or regenerated HDF5, LeRobot v2.0, v2.1, v3.0.",
             context_settings={"help_option_names": ["-h", "--help"]})
def libero() -> None:
    pass


@libero.command("look", help="Say which layout SOURCES have, how that is known, and which tasks they hold. Writes nothing.")
@click.argument("sources", nargs=-1, required=True)
def look_command(sources: tuple[str, ...]) -> None:
    for source in sources_of(sources):
        click.echo(source.describe())
        for task, sentence in source.tasks.items():
            click.echo(f"  {task}: {sentence}")


@libero.command("import", help="Write SOURCES (files, folders, globs) as a store at OUT.")
@click.argument("sources", nargs=-1, metavar="SOURCES...")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--task_names", help="Tasks or sentences, comma-separated (default: all).")
@click.option("--drop_noops", is_flag=True, help="Leave out rows that do nothing, by OpenVLA's rule.")
@click.option("--orientation", type=click.Choice(list(UPRIGHT)), help="How the sources' pictures lie (default: as their layout says).")
@click.option("--gripper", type=click.Choice(list(GRIPPER)), default="closes", show_default=True, help="What +1 does in the sources.")
@click.option("--insist", is_flag=True, help="Keep --orientation although the pixels that move speak strongly against it.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Threads that encode pictures.")
@click.option("--replace", is_flag=True, help="Replace a store that is already there.")
def import_command(sources: tuple[str, ...], out: Path, task_names: str | None, drop_noops: bool, orientation: str | None, gripper: str,
                   insist: bool, workers: int, replace: bool) -> None:
    if not sources:
        raise click.UsageError(f"Missing argument 'OUT': SOURCES come first, OUT is the last, and only {str(out)!r} is given.")
    names = [name.strip() for name in task_names.split(",")] if task_names else []
    report = import_libero(sources, out, None, replace, names, drop_noops, orientation, gripper, workers, click.echo, insist)
    for name, found in report["evidence"].items():
        click.echo(f"  {name}: " + ", ".join(f"{key} {value:+.2f}" for key, value in found.items()))
    click.echo(", ".join(f"{key} {report[key]}" for key in ("out", "episodes", "frames", "noops", "hash")))
