"""Pictures as CLIP's tower takes them: the one preprocessing of the change agent, in training, evaluation and inference.

    clip_pixels(pictures)                                              # (n, 3, 224, 224) float32

Boxes need nothing: they are shares of the picture's sides, and the whole picture is resized.
"""

import numpy as np
import PIL.Image

from repro.machine import UserError

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # openai/CLIP, clip.py
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def clip_pixels(pictures: np.ndarray, size: int = 224) -> np.ndarray:
    """(n, 3, size, size) float32 of RGB pictures (n, H, W, 3) uint8: bicubic, then (x / 255 - mean) / std of CLIP.

    The same numbers as transformers' CLIPImageProcessor for square pictures. Others are refused: CLIP would cut their sides off, and a
    box would no longer be where it was. Raises UserError.
    """
    pictures = np.asarray(pictures)
    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8 or pictures.shape[1] != pictures.shape[2]:
        raise UserError("These pictures cannot be given to CLIP.", "square RGB pictures (n, H, H, 3) uint8",
                        f"{pictures.dtype} {pictures.shape}", "cut them to squares, and their boxes with them")  # fmt: skip
    made = np.empty((len(pictures), 3, size, size), np.float32)
    for into, picture in zip(made, pictures, strict=True):
        resized = PIL.Image.fromarray(picture).resize((size, size), PIL.Image.Resampling.BICUBIC)
        into[:] = ((np.asarray(resized, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)
    return made
