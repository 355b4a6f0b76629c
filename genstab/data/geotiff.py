"""The tags that tie a GeoTIFF to the ground, fitted to a picture of another size."""

from collections.abc import Sequence

from genstab.data.decoders import Tag

PIXEL_SCALE, TIE_POINTS, TRANSFORMATION = 33550, 33922, 34264


def scaled_geotiff(tags: Sequence[Tag], ratio: Sequence[float]) -> list[Tag]:
    """Return the tags for a picture of `ratio` (height, width) times the size, of the same ground.

    A pixel becomes smaller by the ratio, and the pixels of the tie points (i, j, k, x, y, z) lie further out.

    >>> scaled_geotiff([(33550, 12, 3, (10.0, 10.0, 0.0))], (2, 2))
    [(33550, 12, 3, (5.0, 5.0, 0.0))]
    """
    down, right = ratio
    factors = {
        PIXEL_SCALE: (1 / right, 1 / down, 1),
        TIE_POINTS: (right, down, 1, 1, 1, 1),
        TRANSFORMATION: (1 / right, 1 / down, 1, 1),
    }
    fitted = []
    for code, kind, count, value in tags:
        if (factor := factors.get(code)) and tuple(ratio) != (1, 1):
            value = tuple(each * factor[i % len(factor)] for i, each in enumerate(value))
        fitted.append((code, kind, count, value))
    return fitted
