"""`repro gaze ...`: boxes into a store, and how good they are.

    repro gaze annotate STORE --detector colour --crops 224
    repro gaze quality FOLDER --detector transformers,colour
"""

import json
from pathlib import Path

import click

from repro import machine


@click.group()
def gaze() -> None:
    """Where the thing is that an instruction names: boxes into a store, and how good they are."""


DETECTOR = click.option("--detector", default="colour", show_default=True, help="colour | transformers | groundingdino-py")
WEIGHTS = click.option("--weights", help="GroundingDINO's: hub id, folder, or Kaggle input (default: looked for among the inputs).")


@gaze.command("annotate")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--detector", default="truth", show_default=True, help="truth | state | colour | transformers | groundingdino-py")
@WEIGHTS
@click.option("--crops", type=int, help="Also a column gaze.crop of square pictures with this side.")
@click.option("--plain", is_flag=True, help="The best box of one look, without tiles, filters, relations and smoothing.")
@click.option("--stay", is_flag=True, help="The gaze stays on the target while the gripper holds it (ReconVLA's own code).")
@click.option("--margin", default=0.0, show_default=True, help="Of a crop, as a share of its box's sides, at each side.")
@click.option("--minimum", default=0, show_default=True, help="Least side of a crop, in pixels of the picture.")
@click.option("--camera", type=click.Path(path_type=Path), help="With state: a CALVIN folder whose .hydra config tells another camera.")
def gaze_annotate(store: Path, detector: str, weights: str | None, crops: int | None, plain: bool, stay: bool, margin: float, minimum: int,
                  camera: Path | None) -> None:
    """Add gaze boxes to a store; what was done is kept when it is interrupted."""
    from repro.gaze.annotate import annotate
    from repro.gaze.options import ALL, NONE
    from repro.gaze.state import camera_of

    report = annotate(store, detector, NONE if plain else ALL, weights=weights, follow=not stay, margin=margin, minimum=minimum,
                      crop_size=None if crops is None else (crops, crops), camera=camera and camera_of(camera, any_camera=True),
                      log=click.echo)
    click.echo(json.dumps(report, indent=1))


@gaze.command("quality")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@DETECTOR
@WEIGHTS
@click.option("--profile", default="smoke", show_default=True, help="smoke | cpu | t4 | paper")
@click.option("--publish", is_flag=True, help="Only copy records, tables and figures to results/gaze, ready to commit.")
def gaze_quality(folders: tuple[Path, ...], detector: str, weights: str | None, profile: str, publish: bool) -> None:
    """Score a detector, with and without each option, on drawn scenes and on FOLDERS in CALVIN's layout that have a boxes.json."""
    from repro.evaluation import gaze as evaluation
    from repro.gaze.detectors import load

    work = machine.work(profile) / "gaze"
    if publish:
        evaluation.publish(work, click.echo)
        return
    detectors = [load(name, weights if name != "colour" else None) for name in detector.split(",")]
    evaluation.run(work, profile, detectors, folders, log=click.echo)
    click.echo((work / "report.md").read_text())
