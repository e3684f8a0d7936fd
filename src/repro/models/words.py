"""Words of instructions, for the small policy that reads a bag of words (models/keypoint_policy.py)."""
import re
from collections.abc import Iterable


def split(instruction: str) -> list[str]:
    """Lower-case words and digits of an instruction, in order."""
    return re.findall(r"[a-z]+|\d", instruction.lower())


def vocabulary(instructions: Iterable[str]) -> tuple[str, ...]:
    """The distinct words of the training instructions, sorted."""
    return tuple(sorted({word for instruction in instructions for word in split(instruction)}))
