"""`repro kaggle ...` and `repro store ...`."""

from pathlib import Path

import click

from repro import machine
from repro.machine import UserError

OWNER = click.option("--owner", help="The Kaggle account (default: KAGGLE_USERNAME, or the one that is logged in).")
NAME = click.argument("name", type=click.Choice(["reconvla", "vggt-vla", "change-agent", "all"]))
PARTS = {"data": "OWNER/SLUG", "output": "OWNER/SLUG", "model": "OWNER/MODEL/FRAMEWORK/VARIATION/VERSION"}


def _sources(context, option: click.Option, given: tuple[str, ...]) -> tuple[str, ...]:
    """As they are given, where each has the parts that Kaggle's name of such a thing has."""
    wanted = PARTS[option.name]
    for one in given:
        if one.count("/") != wanted.count("/") or not all(one.split("/")):
            raise click.BadParameter(f"{one!r} is not {wanted}")
    return given




@click.group("kaggle", context_settings={"help_option_names": ["-h", "--help"]})
def kaggle() -> None:
    """Notebooks to upload, with the library inside; kaggle/README.md says what to do with them."""


@kaggle.command("build")
@click.option("--check", is_flag=True, help="Only say what is stale (exit code 1).")
@click.option(
    "--times", type=click.Path(path_type=Path), metavar="WORK", help="Work folder of a finished run: its times become the estimates."
)
def build_command(check: bool, times: Path | None) -> None:
    """Build kaggle/<name>/<name>.ipynb and kernel-metadata.json from the numbered notebooks."""
    from repro.kaggle import bundle
    from repro.kaggle import times as measured

    root = machine.root()
    if check:
        if found := bundle.problems(root):
            raise UserError("kaggle/ is stale", "what a fresh build gives", "; ".join(found), "repro kaggle build")
        click.echo("kaggle/ is as a fresh build would be")
        return
    if times:
        measured.keep_times(root, times)
    bundle.write(root, click.echo)


@kaggle.command("wheels")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--python", "pythons", multiple=True, default=("3.12", "3.13"), show_default=True, help="Versions of Kaggle's Python.")
def wheels_command(out: Path, pythons: tuple[str, ...]) -> None:
    """Download to OUT what a session without internet lacks, ready to be a Kaggle data set."""
    from repro.kaggle import environment

    environment.download_wheels(out, machine.root(), pythons, click.echo)
    click.echo(f"upload it: put your account into {out / 'dataset-metadata.json'}, then kaggle datasets create -p {out}")


@kaggle.command("push")
@NAME
@OWNER
@click.option("--data", multiple=True, callback=_sources, metavar=PARTS["data"], help="A data set to attach; may be repeated.")
@click.option("--model", multiple=True, callback=_sources, metavar=PARTS["model"], help="A model to attach; may be repeated.")
@click.option("--output", multiple=True, callback=_sources, metavar=PARTS["output"],
              help="A notebook whose output to attach, to go on from it.")
@click.option("--no-internet", is_flag=True)
def push_command(name: str, owner: str | None, data: tuple, model: tuple, output: tuple, no_internet: bool) -> None:
    """Upload a built notebook; Kaggle runs it from top to bottom."""
    from repro.kaggle import push

    target = push.push(machine.root(), name, owner, data, model, output, not no_internet, click.echo)
    click.echo(f"runs as {target}; next: repro kaggle status {name}")


@kaggle.command("status")
@NAME
@OWNER
def status_command(name: str, owner: str | None) -> None:
    """Is it queued, running, complete?"""
    from repro.kaggle import push

    click.echo(push.status(machine.root(), name, owner))


@kaggle.command("pull")
@NAME
@OWNER
@click.option("--out", type=click.Path(path_type=Path), default=Path("kaggle-output"), show_default=True)
def pull_command(name: str, owner: str | None, out: Path) -> None:
    """Fetch the output of the last run."""
    from repro.kaggle import push

    click.echo(push.pull(machine.root(), name, owner, out))


@click.group("store", context_settings={"help_option_names": ["-h", "--help"]})
def store() -> None:
    """Stores out of CALVIN's remote zips, and stores as Kaggle data sets."""


@store.command("fetch")
@click.argument("url")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--episodes", type=click.IntRange(min=1), default=500, show_default=True,
              help="Annotated episodes of training; validation gets a tenth, at least 34.")
@click.option("--disk-gb", default=12.0, show_default=True, help="Stop, with a whole store, before it grows past this.")
@click.option("--seed", default=0, show_default=True)
def fetch_command(url: str, out: Path, episodes: int, disk_gb: float, seed: int) -> None:
    """Some episodes of a CALVIN zip at URL into stores OUT/training and OUT/validation, without the rest of the zip. Resumes."""
    from repro.data import calvin_remote

    calvin_remote.fetch(url, out, episodes, disk_gb, seed, log=click.echo)


@store.command("push")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("slug")
@OWNER
@click.option("--message", default="new version", show_default=True)
def push_store_command(folder: Path, slug: str, owner: str | None, message: str) -> None:
    """Make a private Kaggle data set SLUG of a store, or of a folder of stores, or a new version of it."""
    from repro.kaggle import push

    push.push_store(folder, slug, owner, message, echo=click.echo)
