"""`repro calvin ...`: import CALVIN data into a store, or make the ReconVLA guide's folders and JSON.

    repro calvin import downloads/task_D_D store/training --split training
    repro calvin extract --ann_path .../auto_lang_ann.npy --npz_src_dir .../training --root_folder extracted
    repro calvin crop --root_folder extracted --npz_src_dir .../training --detector colour
    repro calvin json --root_folder extracted --output calvin_train.json
"""

from pathlib import Path

import click

from repro.data.calvin_import import import_calvin


@click.group("calvin", help="Read CALVIN data: import it into a store, or make the ReconVLA guide's folders and JSON.",
             context_settings={"help_option_names": ["-h", "--help"]})
def calvin() -> None:
    pass


def _report(report: dict) -> None:
    for name, why in report.pop("damaged").items():
        click.echo(f"  left out {name}: {why}")
    click.echo(", ".join(f"{key} {value}" for key, value in report.items()))


@calvin.command("import", help="Write the annotated episodes of ROOT as a store at OUT.")
@click.argument("root", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--split", default="training", show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--scene", help="A, B, C or D, for data whose scene no file tells")
@click.option("--replace", is_flag=True, help="replace a store that is already there")
def import_command(root: Path, out: Path, split: str, workers: int, scene: str | None, replace: bool) -> None:
    _report(import_calvin(root, split, out, workers, scene, replace, click.echo))


@calvin.command("extract", help="Guide, step 1: ROOT/{i}_{task}/ with lang_ann/lang_ann.yaml and img/frame_XXXXXXX.png.")
@click.option("--ann_path", required=True, type=click.Path(path_type=Path), help="auto_lang_ann.npy")
@click.option("--npz_src_dir", required=True, type=click.Path(path_type=Path), help="the folder of episode_XXXXXXX.npz")
@click.option("--root_folder", required=True, type=click.Path(path_type=Path), help="where to write; must not exist")
@click.option("--scene", help="A, B, C or D, for data whose scene no file tells")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
def extract_command(ann_path: Path, npz_src_dir: Path, root_folder: Path, scene: str | None, workers: int) -> None:
    from repro.data import guide

    _report(guide.extract(ann_path, npz_src_dir, root_folder, scene, workers))


@calvin.command("crop", help="Guide, step 2: crop/frame_XXXXXXX.png beside every picture, and crop_info.jsonl.")
@click.option("--root_folder", required=True, type=click.Path(path_type=Path))
@click.option("--npz_src_dir", type=click.Path(path_type=Path), help="where boxes.json lies; needed by --detector truth")
@click.option("--detector", type=click.Choice(["truth", "colour", "transformers", "groundingdino-py", "none"]), default="colour",
              show_default=True)
@click.option("--weights", help="GroundingDINO's weights, for transformers and groundingdino-py: hub id, folder or Kaggle input")
def crop_command(root_folder: Path, npz_src_dir: Path | None, detector: str, weights: str | None) -> None:
    from repro.data import guide

    click.echo(", ".join(f"{source} {count}" for source, count in guide.crop(root_folder, detector, npz_src_dir, weights).items()))


@calvin.command("json", help="Guide, step 3: records {id, image, crop, instruction, actions}.")
@click.option("--root_folder", required=True, type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path))
@click.option("--future_k", type=click.IntRange(min=1), default=5, show_default=True,
              help="actions a record holds; the last is repeated at an episode's end")
def json_command(root_folder: Path, output: Path, future_k: int) -> None:
    from repro.data import guide

    click.echo(f"{guide.write_json(root_folder, output, future_k, click.echo)} records in {output}")
