"""JPEG files by OpenCV, and reductions by torch on bytes: Pillow's pixels in about two thirds of Pillow's time."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile

_RGB: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)
"""Tells OpenCV the order of the colours; None: it is older than 4.11 and has blue first, always."""


def decode_jpeg(image: Image.Image) -> np.ndarray | None:
    """The pixels of a file that Pillow has opened but not loaded, uint8 (H, W, 3), equal to Pillow's.

    None if Pillow has to decode it itself: what is no JPEG or has other colours than YCbCr and RGB, and what OpenCV
    refuses, since Pillow can say why.
    """
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    assert isinstance(image, ImageFile.ImageFile) and image.fp is not None
    place = image.fp.tell()
    image.fp.seek(0)
    content = np.frombuffer(image.fp.read(), dtype=np.uint8)
    image.fp.seek(place)
    if _RGB is not None:
        return cv2.imdecode(content, _RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    pixels = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def resize_bytes(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 (H, W, 3) to (width, height), antialiased bilinear: within a level of Pillow's and torchvision's."""
    # unsqueeze before permute: only with the strides of a whole batch does torch see, and keep, the channels last in
    # memory, which takes it a third of the time.
    source = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0).permute(0, 3, 1, 2)
    resized = F.interpolate(source, size=size[::-1], mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1)[0].numpy())
