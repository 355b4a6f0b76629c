"""Procedural street façades: pairs of label map and photo, so that training needs no download."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw

from genstab.errors import check_counts

Colour = tuple[int, ...]  # red, green, blue and, in photos, opacity
Box = tuple[float, float, float, float]  # left, top, right, bottom in units of the image, y down

# fmt: off
# The CMP classes in the colours of pix2pix's label images, a jet scale in sixteenths. A cornice is the head
# of a window, a blind a shutter, a molding a band across the façade, the main cornice included.
PALETTE: dict[str, tuple[int, int, int]] = {
    "background": (0, 0, 223), "facade": (0, 48, 255), "window": (0, 128, 255), "door": (0, 207, 255),
    "cornice": (32, 255, 223), "sill": (112, 255, 143), "balcony": (191, 255, 64), "blind": (255, 239, 0),
    "deco": (255, 159, 0), "molding": (255, 80, 0), "pillar": (255, 0, 0), "shop": (175, 0, 0),
}
# Families of buildings: share, blocks (height, length, tone of joints, spread of tones; none: plaster),
# walls, trim, and the odds of elements, which differ so that the label map hints at the colours, as in a street.
_ODDS = ("cornice", "sill", "molding", "deco", "balcony", "blind", "pillar", "shop", "iron", "awning", "roof")
_FAMILIES: tuple[tuple[float, tuple[float, ...], str, str, tuple[float, ...]], ...] = (
    (.30, (), "#d2b680 #d8c6a2 #c69474 #a8b08e #c8a698", "#e6dcc8", (1, .9, .8, .7, .3, 0, .2, .5, .6, .6, 1)),
    (.20, (.0117, .03, 1.18, .07), "#924c3a #7c4234 #a4644a", "#cec0a6", (.8, .9, .6, .1, .1, 0, .6, .8, .9, .6, 1)),
    (.17, (.036, .08, .8, .035), "#bcb098 #a6a094 #cabca0", "#d4c8b0", (.7, .7, 1, .6, .5, 0, .8, .3, .3, .3, 1)),
    (.20, (), "#d4905a #cc7658 #dcb870 #dca894", "#ece0cc", (.25, .9, .4, .1, .4, 1, 0, .4, .7, .9, 1)),
    (.13, (), "#c6c6c0 #a8aaac #d2ccbc", "#dedcd6", (0, .6, 0, 0, .9, .1, 0, .5, .7, .4, 0)),
)
_PAINTS = {
    "frame": "#e8e6e0 #e0dcd0 #5a4030", "glass": "#3a444e #4a5660 #343a40", "iron": "#24262a",
    "accent": "#8c2a2a #2c5a44 #2e4468 #b08a3c", "door": "#4a3020 #2c3830 #5c4430", "cream": "#e4ded0",
    "roof": "#8a4a38 #6a4a40 #5a5c62", "blind": "#3c5c48 #5a4030 #54687c",
}
_GLAZES = {"shade": (20, 22, 34), "sky": (196, 212, 228), "lamp": (250, 214, 150), "cloth": (226, 220, 206)}
_SKIES = (("#6f9bd2", "#c8dcee"), ("#b4c4d4", "#e8ecee"), ("#c6cacd", "#dfe0e0"))  # zenith, horizon
# An element is a list of rectangles: left, top, right, bottom as fractions of it, a paint and its tone or a
# glaze and its opacity. A pitch in units of the image repeats one half as wide or, if negative, as high.
_BLOCK = "0 1 1 1.8 shade .4; 0 1 1 2.4 shade .15; 0 0 1 1 trim 1; 0 0 1 .3 trim 1.14; 0 .7 1 1 trim .72"
_ELEMENTS = {
    "block": _BLOCK, "molding": _BLOCK + "; 0 .5 1 .65 trim .86",
    "dentils": _BLOCK + "; 0 .45 1 1 trim .6; 0 .45 1 .85 trim .98 .022",
    "none": "", "two": ".47 0 .53 1 frame 1", "three": ".3 0 .36 1 frame 1; .64 0 .7 1 frame 1",
    "transom": "0 .27 1 .31 frame 1", "sash": "0 .48 1 .52 frame 1", "reveal": "0 0 .1 1 shade .5",
    "room": "0 .5 1 1 shade .3", "glare": "0 0 1 .3 sky .45", "curtains": "0 0 .28 1 cloth .6; .72 0 1 1 cloth .6",
    "blind": "0 0 1.2 1.04 shade .4; 0 0 1 1 blind 1; .15 .08 .85 .94 blind 1.4 -.0095; 0 .48 1 .54 blind .9",
    "iron": "0 1 1 1.3 shade .4; 0 0 1 .8 shade .3; 0 0 1 .8 iron 1 .0105; 0 0 1 .1 iron 1; 0 .8 1 1 trim 1",
    "stone": "0 1 1 1.3 shade .4; 0 0 1 .8 trim .55; 0 0 1 .8 trim 1 .0145; 0 0 1 .16 trim 1.1; 0 .8 1 1 trim 1",
    "deco": "0 .2 1.02 1.1 shade .3; 0 0 1 1 trim 1; .07 .2 .93 .8 trim .7; .16 .3 .84 .7 trim 1; .4 .1 .6 .9 trim .8",
    "pillar": "1 0 1.5 1 shade .4; 0 0 1 1 trim 1; 0 0 .25 1 trim 1.1; .7 0 1 1 trim .8; 0 .97 1 1 trim 1.05",
    "door": ".06 .3 .94 .94 door 1.4; 0 .6 1 .66 door 1; .44 .3 .56 1 door .9; .48 .26 .52 1 door .5",
    "shop": "0 0 1 1 accent .6; 0 0 1 .2 accent 1; .28 .06 .72 .14 cream 1 .013; .03 .22 .97 .88 glass .8;"
            ".03 .22 .97 .5 lamp .25; .1 .62 .9 .88 lamp .4 .05; .03 .22 .16 .88 sky .2; .48 .2 .51 1 accent .7",
    "awning": "0 1 1 1.45 shade .6; 0 0 1 1 accent 1.1; 0 0 1 1 cream 1 .042; 0 .8 1 1 shade .3",
    "roof": "0 0 1 1 roof 1; 0 0 1 1 roof .86 -.013; .1 -.3 .16 .1 wall .75; .82 -.3 .88 .1 wall .75",
    "base": "0 0 1 1 shade .22 -.025; 0 .94 1 1 shade .5",
}
# fmt: on
_CLASS = {name: i for i, name in enumerate(PALETTE)}
_PARTS = {kind: [(*p.split(), "0")[:7] for p in parts.split(";") if p] for kind, parts in _ELEMENTS.items()}


def _noise(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """Return smooth noise, (side, side, 1): the same image at every size."""
    grid = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))[..., None]


def _inside(box: Box, a: float, b: float, c: float, d: float) -> Box:
    """Return the part of a box between the fractions a and c of its width and b and d of its height."""
    x, y, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
    return x + a * width, y + b * height, x + c * width, y + d * height


def _pixels(box: Box, side: int) -> tuple[int, int, int, int]:
    """Return the first and last pixels of a box; at least one, so that nothing vanishes."""
    x0, y0, x1, y1 = round(box[0] * side), round(box[1] * side), round(box[2] * side), round(box[3] * side)
    return x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)


class _Street:
    """The label map and the photo of one scene, drawn back to front in the light from the upper left."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.rng, self.sun = rng, rng.uniform(0.5, 1)
        # The photo is drawn larger and box-reduced; from 256 pixels on thin bars fade instead of vanishing.
        self.size, self.side = size, size * max(2, -(-256 // size))
        self.label, self.photo = Image.new("L", (size, size)), Image.new("RGB", (self.side, self.side))
        self.sheets = (ImageDraw.Draw(self.label), size), (ImageDraw.Draw(self.photo, "RGBA"), self.side)

    def restyle(self) -> None:
        """Choose the elements, the paints and the windows of the next building."""
        pick, shares = self.rng.choice, [family[0] for family in _FAMILIES]
        _, self.blocks, walls, trim, odds = _FAMILIES[pick(len(_FAMILIES), p=shares)]
        self.has = dict(zip(_ODDS, (self.rng.random(len(_ODDS)) < odds).tolist(), strict=True))
        paints = {**_PAINTS, "wall": walls, "trim": trim}
        self.paints = {name: ImageColor.getrgb(pick(colours.split())) for name, colours in paints.items()}
        self.nodes = pick([2, 3, 9])  # the heads of its windows: lintel, pediment or segment
        self.bow = pick([0, 0, 0.18, 0.5]) if self.has["cornice"] or self.blocks else 0
        self.bars = pick(["none", "two", "three"]), pick(["none", "transom", "sash"])
        self.curtains = self.rng.uniform(0, 0.7)

    def mix(self, paint: str, tone: float = 1.0) -> Colour:
        """Return a paint in a tone, or a glaze with an opacity."""
        if paint in _GLAZES:
            return *_GLAZES[paint], int(255 * tone * (self.sun if paint == "shade" else 1))
        return tuple([min(255, int(v * tone)) for v in self.paints[paint]])

    def shape(self, box: Box, colour: Colour | None, name: str = "", rise: float = 0, nodes: int = 9) -> None:
        """Mark a box as the class `name` and paint it; its top may rise as an ellipse or, with 3 nodes, a gable."""
        if rise > 0:
            x, y, turn = box[0], box[1] + rise, np.linspace(0, np.pi, nodes)
            bow = np.stack([x + (box[2] - x) * (1 - np.cos(turn)) / 2, y - rise * np.sin(turn)], axis=1)
            outline = np.concatenate([bow, [box[2:], (x, box[3])]])
        for (pen, side), ink in zip(self.sheets, (_CLASS.get(name), colour), strict=True):
            if ink is not None and rise > 0:
                pen.polygon((outline * side - 0.5).ravel().tolist(), ink)
            elif ink is not None:
                pen.rectangle(_pixels(box, side), ink)

    def element(self, kind: str, box: Box, name: str = "") -> None:
        """Mark a box with the class `name` and paint the rectangles of `_ELEMENTS[kind]` into it."""
        self.shape(box, None, name)
        for a, b, c, d, paint, tone, step in _PARTS[kind]:
            x0, y0, x1, y1 = part = _inside(box, float(a), float(b), float(c), float(d))
            colour, pitch = self.mix(paint, float(tone)), float(step)
            if pitch == 0:
                self.shape(part, colour)
            for x in np.arange(x0, x1 - pitch / 3, pitch).tolist() if pitch > 0 else ():
                self.shape((x, y0, min(x + pitch / 2, x1), y1), colour)
            for y in np.arange(y0, y1, -pitch).tolist() if pitch < 0 else ():
                self.shape((x0, y, x1, y - pitch / 2), colour)

    def wall(self, box: Box) -> None:
        """Draw plaster, or courses of blocks, each block in a tone of its own."""
        self.shape(box, self.paints["wall"], "facade")
        if not self.blocks:
            return
        height, length, joint, spread = self.blocks
        tones = self.rng.normal(1, spread, (61, 61)).astype(np.float32)
        x0, y0, x1, y1 = _pixels((max(box[0], 0), box[1], min(box[2], 1), box[3]), self.side)
        v = (np.arange(y0, y1 + 1) + 0.5) / self.side / height
        u = (np.arange(x0, x1 + 1) + 0.5) / self.side / length
        row, u = v.astype(int), np.stack([u, u + 0.5])  # every other course is offset by half a block
        gap = (v % 1 < 0.0045 / height)[:, None] | (u % 1 < 0.004 / length)[row % 2]
        tone = np.where(gap, np.float32(joint), tones[row[:, None] % 61, u.astype(int)[row % 2] % 61])
        self.photo.paste(Image.fromarray((tone[..., None] * self.paints["wall"]).astype(np.uint8)), (x0, y0))

    def window(self, box: Box, bow: float) -> None:
        (x0, y0, x1, y1), rise, luck = box, bow * (box[2] - box[0]), self.rng.random()
        if self.has["cornice"]:  # an architrave
            self.shape((x0 - 0.007, y0 - 0.007, x1 + 0.007, y1), self.mix("trim"), rise=rise)
        self.shape(box, self.mix("frame"), "window", rise)
        pane = (x0 + 0.006, y0 + 0.005, x1 - 0.006, y1 - 0.005)
        self.shape(pane, self.mix("glass", 0.8 + 0.4 * luck), rise=rise)
        dressing = "curtains" if luck < self.curtains else "glare" if luck > 0.75 else "none"
        for kind in ("room", dressing, *self.bars, "reveal"):
            self.element(kind, (pane[0], pane[1] + rise, *pane[2:]))
        self.shape((x0, y0, x1, y0 + rise + 0.013), self.mix("shade", 0.6), rise=rise)  # since it is recessed

    def bay(self, box: Box, kind: str, ratio: float, bow: float) -> None:
        """Draw one bay of one storey: an entrance, a shop, or a window with its ornaments."""
        a, b = (1 - ratio) / 2, (1 + ratio) / 2
        if kind == "door":
            half = min(0.27, 0.24 * (box[3] - box[1]) / (box[2] - box[0]))  # no wider in a wide bay
            a, b, rise = 0.5 - half, 0.5 + half, 2 * half * bow * (box[2] - box[0])
            self.shape(_inside(box, a - 0.07, 0.28, b + 0.07, 1), self.mix("trim"), rise=rise)
            self.shape(_inside(box, a, 0.31, b, 1), self.mix("door"), "door", rise)
            self.shape(_inside(box, a + 0.05, 0.34, b - 0.05, 0.48), self.mix("glass"), rise=0.8 * rise)
            self.element("door", _inside(box, a, 0.31, b, 1))
            if self.has["deco"]:
                self.element("deco", _inside(box, a, 0.09, b, 0.25), "deco")
            return
        if kind == "shop":
            self.element("shop", _inside(box, 0.06, 0.14, 0.94, 1), "shop")
            self.element("awning" if self.has["awning"] else "none", _inside(box, 0.06, 0.3, 0.94, 0.48))
            return
        self.window(_inside(box, a, 0.26, b, 0.93 if kind in ("iron", "stone") else 0.8), bow)
        for left in (a - 0.42 * ratio, b) if self.has["blind"] else ():
            self.element("blind", _inside(box, left, 0.26, left + 0.42 * ratio, 0.8), "blind")
        if self.has["cornice"] and bow < 0.4:
            base = 0.12 if self.nodes == 2 else 0.17
            for inset, top, tone in ((0.1, 0.06, 1.05), (0.03, 0.1, 0.74)) if self.nodes > 2 else ():
                gable = _inside(box, a - inset, top, b + inset, base)
                self.shape(gable, self.mix("trim", tone), "cornice", gable[3] - gable[1], self.nodes)
            self.element("block", _inside(box, a - 0.1, base, b + 0.1, 0.24), "cornice")
        if kind in ("iron", "stone"):
            self.element(kind, _inside(box, 0.04, 0.64, 0.96, 0.99), "balcony")
        elif self.has["sill"]:
            self.element("block", _inside(box, a - 0.07, 0.8, b + 0.07, 0.845), "sill")
        if kind == "deco":
            self.element("deco", _inside(box, a, 0.865, b, 0.985), "deco")

    def building(self, left: float, right: float, top: float, ground: float, storey: float) -> None:
        self.restyle()
        rng, has = self.rng, self.has
        storeys = max(2, round((ground - top) / storey - 0.3))
        h = (ground - top) / (storeys + 0.3)
        count = max(2, round((right - left) / (h * rng.uniform(0.72, 1))))
        ratio = rng.uniform(0.36, 0.44) if has["blind"] else rng.uniform(0.42, 0.6)
        bays = np.linspace(left + 0.015, right - 0.015, count + 1).tolist()
        floors = [ground, *(ground - (1.25 + k) * h for k in range(storeys))]  # the ground floor is higher
        entrance = rng.integers(count) if has["shop"] else count // 2
        where, deco, repeat = rng.integers(3), rng.integers(2, 4), rng.random() < 0.35
        if has["roof"]:
            self.element("roof", (left + 0.01, top - 0.03 - 0.35 * h, right - 0.01, top), "background")
        self.wall((left, top, right, ground))
        self.element("base", (left, floors[1], right, ground))
        for i, (x0, x1) in enumerate(pairwise(bays)):
            chosen = has["balcony"] and (abs(2 * i - count + 1) < 2, i in (0, count - 1), True)[where]
            for k, (y1, y0) in enumerate(pairwise(floors)):
                kind = "deco" if has["deco"] and k == deco else "window"
                if k == 0:
                    kind = "door" if i == entrance else "shop" if has["shop"] else "window"
                elif chosen and (k == 1 or (repeat and k < storeys - 1)):
                    kind = "iron" if has["iron"] else "stone"
                self.bay((x0, y0, x1, y1), kind, ratio, self.bow * (self.bow < 0.4 or k in (0, storeys - 1)))
        for x in bays if has["pillar"] else ():
            self.element("pillar", (x - 0.035 * h, top, x + 0.035 * h, floors[1]), "pillar")
        for y in floors[1 : 2 if has["pillar"] else -1] if has["molding"] else ():
            self.element("molding", (left, y - 0.018, right, y + 0.018), "molding")
        if has["roof"]:
            self.element("dentils", (left - 0.012, top - 0.03, right + 0.012, top + 0.022), "molding")
        self.shape((left, top, left + 0.004, ground), self.mix("shade", 0.5))  # the joint between two houses

    def photograph(self) -> np.ndarray:
        """Reduce to the final size, under uneven light, with the camera's white balance and grain."""
        rng, size = self.rng, self.size
        light = np.linspace(1.05, 0.9, size)[:, None, None] * (1 + 0.035 * _noise(rng, 9, size))
        balance = rng.uniform(0.86, 1.02) * (1 + np.array([1, 0, -1.2]) * rng.normal(0, 0.02))
        photo, grain = self.photo.reduce(self.side // size), rng.normal(0, 3, (size, size, 1))
        return (np.asarray(photo) * (light * balance) + grain).clip(0, 255).astype(np.uint8)


def draw_facade(seed: int, index: int, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street scene: its label map and its photo, each uint8 (size, size, 3).

    The scene depends on (seed, index) alone, not on the size. Label pixels are exactly colours of `PALETTE`.
    """
    rng = np.random.default_rng([seed, index])
    street = _Street(size, rng)
    zenith, horizon = (np.array(ImageColor.getrgb(colour)) for colour in _SKIES[rng.integers(3)])
    sky = zenith + (horizon - zenith) * np.linspace(0, 1.6, 64).clip(0, 1)[:, None, None]
    sky = (sky + (240 - sky) * 0.6 * np.clip(_noise(rng, 6, 64) - 0.3, 0, 1)).astype(np.uint8)  # clouds
    street.photo.paste(Image.fromarray(sky).resize(street.photo.size, Image.Resampling.BICUBIC))
    for x in rng.uniform(-0.1, 1, 5).tolist():  # houses in the haze
        street.shape((x, rng.uniform(0.35, 0.6), x + 0.16, 1), (150, 156, 166))
    top, ground, storeys = rng.uniform(0.12, 0.24), rng.uniform(0.93, 0.97), rng.integers(2, 6)
    street.shape((0, ground, 1, 1), (118, 116, 114))
    (a, b), walls = rng.uniform(0.05, 0.14, 2), np.cumsum(rng.uniform(0.34, 0.6, 2)) - 0.1
    cuts = ([a, 1 - b], [-a, 1 + b], [-0.1, *walls, 1.12])[rng.choice(3, p=(0.25, 0.35, 0.4))]  # 1 or 3 houses
    for left, right in pairwise(cuts):
        roof = top + (rng.uniform(-0.03, 0.16) if left > 0.2 else 0)
        street.building(left, right, roof, ground, (ground - top) / (storeys + 0.3))
    street.shape((0, ground, 1, ground + 0.012), street.mix("shade", 0.5))
    return np.array(list(PALETTE.values()), dtype=np.uint8)[np.asarray(street.label)], street.photograph()


class SyntheticFacades(torch.utils.data.Dataset[dict[str, Any]]):
    """Drawn façades as pairs of label map and photo.

    An item holds "source" and "target", float32 (3, size, size) in [-1, 1], and "name", its number.

    Raises:
        InputError: a length below 1, a size below 16 or a negative seed.
    """

    def __init__(self, length: int, size: int = 128, seed: int = 0) -> None:
        check_counts(length=length)
        check_counts(least=16, size=size)
        check_counts(least=0, seed=seed)
        self.length, self.size, self.seed = length, size, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"index={index} is not in 0..{self.length - 1}")
        images = draw_facade(self.seed, index, self.size)
        source, target = (torch.from_numpy(v).permute(2, 0, 1).contiguous() / 127.5 - 1 for v in images)
        return {"source": source, "target": target, "name": f"{index:05d}"}
