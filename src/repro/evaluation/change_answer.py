"""What a trained change agent says of two pictures of a user: `repro evaluate change-agent --run RUN --before a.png --after b.png`."""

import os
from pathlib import Path

import numpy as np
import PIL.Image

from repro.data import levir_boxes
from repro.machine import UserError
from repro.models.change_agent import ChangeAgent
from repro.training import checkpoint
from repro.training.change_training import HELD_OUT
from repro.training.loop import read_metrics

EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's modes that become RGB without loss of range
SHARES = {"held_out_pointing": "its centre lay in the box for", "held_out_gate": "its gate was right for"}
TWO_ANSWERS = ("the gate says change or no change: a change of a kind that training gave no box (water, trees) is told as any other, "
               "and its square is then a guess")


def picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB; UserError for what is no picture, not of 8 bits, or not square."""
    try:
        with PIL.Image.open(path) as opened:
            mode, found = opened.mode, np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no picture that can be read", "a PNG or JPEG file", f"{type(error).__name__}: {error}",
                        "check the path, or save it again as PNG") from error
    if mode not in EIGHT_BITS:
        raise UserError(f"{path} has more than 8 bits a pixel and channel: made RGB, most of it would be white", "values 0 to 255",
                        f"mode {mode}", "scale its values to 0 to 255 and save it as 8-bit PNG, both dates alike")
    if found.shape[0] != found.shape[1]:
        raise UserError(f"{path} is not square", "as wide as high: the model was trained on squares",
                        f"{found.shape[1]} x {found.shape[0]} px", "cut both pictures to the same square")
    return found


def answer(run: Path, before: Path, after: Path, caption: str | None = None, write: bool = False, out: Path = Path("change.png")
           ) -> list[str]:
    """Lines to print; the later picture with the square drawn is written to `out`, whole or not at all, unless nothing changed.

    run: a run's folder (its best checkpoint where there is one, else the last), or a checkpoint.
    """
    if caption is not None and write:
        raise UserError("a caption is either given or written", "--caption or --write", "both")
    if out.is_dir():
        raise UserError(f"{out} is a folder", "a file to draw into, as change.png", "a folder", "give --out another name")
    if out.exists() and any(out.samefile(path) for path in (before, after) if path.exists()):
        raise UserError(f"{out} is one of the two pictures", "another file to draw into", "the same file", "give --out another name")
    if out.suffix.lower() != ".png":
        raise UserError(f"{out} would hold a PNG picture", "a name that ends in .png", out.name, "give --out such a name")
    pictures = [picture(path) for path in (before, after)]
    if pictures[0].shape != pictures[1].shape:
        raise UserError("the two dates have different sizes", f"{before}: {pictures[0].shape[1]} px", f"{after}: {pictures[1].shape[1]} px",
                        "give two pictures of the same place and size")
    if not (run / "model.json").is_file():
        run = checkpoint.need(run / "best" if checkpoint.steps(run / "best") else run, "07")
    elif (run / "about.json").is_file() and (problem := checkpoint.damage(run)):
        raise UserError(f"{run} is damaged", "every file as it was written", problem, "name the run's folder: it takes an undamaged one")
    model = ChangeAgent.load(run).eval()
    batch, lines = model.prepare_many(pictures[0][None], pictures[1][None]), [f"checkpoint {run}"]
    if pictures[0].shape[0] < model.tower.image_size:
        lines.append(f"the pictures have {pictures[0].shape[0]} px, fewer than the {model.tower.image_size} px that the model looks at: "
                     "they are enlarged, and what it says of them is worth less than was measured")  # fmt: skip
    if write:
        (caption,) = written = model.write(batch)
        lines.append(f'it writes: "{caption}"')
        (caption,) = model.fitted(written)
    found = model.answers(batch, [caption])
    vector = found["vector"][0]
    lines += [f"[cx, cy, scale] = [{vector[0]:.3f}, {vector[1]:.3f}, {vector[2]:.3f}], shares of the picture's side", measured(run)]
    if "changed" in found:
        lines.append(f"probability of a change: {found['changed'][0]:.2f}, a change from 0.50")
        if found["changed"][0] < 0.5:
            stands = f"; {out} is of an earlier answer, not of this one" if out.exists() else ""
            return [*lines, f"no change: nothing is pointed at, no picture is written{stands}"]
        lines.append(TWO_ANSWERS)
    else:
        lines.append("this model has no gate: it always points somewhere")
    box = levir_boxes.decode(vector)
    side = pictures[1].shape[0]
    lines.append("box: x {} to {}, y {} to {} px".format(*(box[[0, 2, 1, 3]] * side).round().astype(int)))
    _draw(pictures[1], box, vector, out)
    return [*lines, f"drawn: {out}"]


def measured(path: Path) -> str:
    """How good this checkpoint was on validation pairs while it was trained, by the run's metrics.jsonl; or that nothing is known."""
    folders = path.resolve().parents[:2] if (path / "about.json").is_file() else []  # the run's, or that above its best and kept ones
    step = checkpoint.about(path)["step"] if folders else None
    known = [line for folder in folders for line in read_metrics(folder / "metrics.jsonl") if line["step"] == step and "held_out" in line]
    if not known:
        return "how good it was on validation pairs is not known: there is no metrics.jsonl that tells of its step"
    shares = "".join(f", {said} {100 * known[0][name]:.0f} %" for name, said in SHARES.items() if name in known[0])
    said = f"on validation pairs of its own data (at most {HELD_OUT} with a box), at step {step}"
    return f"{said}: mean IoU {1 - known[0]['held_out']:.2f}{shares}"


def _draw(shown: np.ndarray, box: np.ndarray, vector: np.ndarray, out: Path) -> None:
    """The picture with the square in black with a white rim, and a cross at its centre."""
    from repro.attention_figures import boxed

    side, arm = shown.shape[0], 0.02
    drawn = boxed(shown, box)
    for dx, dy in ((arm, 0.003), (0.003, arm)):
        drawn = boxed(drawn, np.clip([vector[0] - dx, vector[1] - dy, vector[0] + dx + 1 / side, vector[1] + dy + 1 / side], 0, 1))
    part = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(drawn).save(part, "PNG")
        os.replace(part, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written", "a file in a folder that can be written", f"{type(error).__name__}: {error}",
                        "give --out another name") from error
    finally:
        if part.is_file():
            part.unlink()
