"""What headers say that changes the meaning of pixels and is easily overlooked: orientation and colour profiles."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from genstab.data.image_io import ImageInfo
from genstab.data.paths import shortened
from genstab.data.reading import Reading

_TURNED = {
    1: "upright", 2: "mirrored", 3: "turned by 180°", 4: "flipped", 5: "transposed", 6: "turned by 90°",
    7: "transposed", 8: "turned by 270°",
}  # fmt: skip
_LEVELS = 8  # of 255; a profile that changes colours by no more is one of the many that are called sRGB


def orientation_note(a: ImageInfo, b: ImageInfo | None) -> str:
    """Return what EXIF says of the orientations of a pair, for a message, if they differ; else an empty string."""
    if b is None or a.orientation == b.orientation:
        return ""
    said = [f"{side} is {_TURNED[each.orientation]}" for side, each in (("A", a), ("B", b))]
    return f" (EXIF: {', '.join(said)})"


class HeaderNotes:
    """Collects what is remarkable in the headers of a data set, to say each thing once.

    Args:
        readings: how the images are read, and their partners in pairs.
    """

    def __init__(self, *readings: Reading) -> None:
        self.turned: list[str] = []
        self.coloured: dict[str, list[str]] = {}
        self.readings = readings
        self.types: list[dict[str, list[str]]] = [{} for _ in readings]

    def see(self, path: Path, info: ImageInfo, partner: ImageInfo | None = None) -> None:
        """Look at the header of an image, and at that of its partner in a pair."""
        if orientation_note(info, partner):
            self.turned.append(path.name)
        for each, types in zip((info, partner), self.types, strict=False):
            if each is not None:
                types.setdefault(each.dtype, []).append(path.name)
        for each in (info, partner):
            if each is not None and each.profile and (name := unlike_srgb(each.profile)):
                self.coloured.setdefault(name, []).append(path.name)

    def lines(self) -> list[str]:
        """Return one line for each kind of remark."""
        lines = [
            f"an ICC profile, {name}, changes the colours of {shortened(list(dict.fromkeys(files)))}: they are read as "
            "they are stored, not converted to sRGB"
            for name, files in self.coloured.items()
        ]
        sides = list(zip(self.readings, self.types, strict=True))
        for reading, types in sides if len(sides) > 1 else ():  # alone, each image has its own depth in and out
            if reading.labels is None and "uint8" in types and len(types) > 1:
                each = ", ".join(f"{dtype} ({shortened(names, 2)})" for dtype, names in types.items())
                lines.append(
                    f"images of several types: {each}; 8 bits are read as 0 to 255, the others by their own range"
                )
        if {dtype for reading, types in sides if reading.value_range for dtype in types} == {"uint8"}:
            lines.append("the range of values has no effect: all images have 8 bits, which are read as 0 to 255")
        if self.turned:
            lines.append(
                f"EXIF turns one image of a pair and not the other: {shortened(self.turned)}; both are read upright: "
                "look whether they match, and remove the orientation where the other image was made without it"
            )
        return lines


@lru_cache(maxsize=64)
def unlike_srgb(profile: bytes) -> str | None:
    """Return the name of an ICC profile that changes colours, None for one that is sRGB up to rounding."""
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = " ".join(ImageCms.getProfileDescription(given).split()) or "without a name"
        space = given.profile.xcolor_space.strip()
        if space not in ("RGB", "GRAY"):
            return f"{name} ({space})"
        levels = np.arange(0, 256, 51, dtype=np.uint8)
        cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        colours = Image.fromarray(cube if space == "RGB" else cube[..., 0])
        shown = ImageCms.profileToProfile(colours, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        return None  # damaged: nobody can follow it
    change = np.abs(np.asarray(shown, dtype=int) - np.asarray(colours.convert("RGB"), dtype=int)).max()
    return f"{name!r}" if change > _LEVELS else None
