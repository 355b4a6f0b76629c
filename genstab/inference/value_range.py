"""The values of the images that a model takes and returns: converted from and to [−1, 1], and found by trying."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from genstab.data.reading import Range, parse_range
from genstab.errors import InputError
from genstab.inference.conventions import Call

AUTO, IMAGENET = "auto", "imagenet"
VALUE_OPTIONS = ("value_range", "output_range", "normalize", "mean", "std")  # the arguments of `parse_values`
RANGES: tuple[Range, ...] = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the photos of ImageNet in [0, 1]
OVER = 0.05  # share of a range by which values may lie outside of it: networks without a last tanh overshoot
MOST_OUTSIDE, SOME_OUTSIDE = 0.5, 0.02  # shares of the values
DARK = -0.5  # an input as dark as that, and no negative output: the output is hardly in [−1, 1]
_CURE = "value_range=auto tries [-1,1], [0,1] and [0,255]; value_range=[min,max] and output_range=[min,max] set it"
_MARGIN = 0.02  # of two likenesses, below which it tells nothing
VARIES = 0.02  # standard deviation; outputs that vary less tell nothing
TELLING = 0.1  # likewise of images: what is almost black has outputs of few values


class ValuesError(InputError):
    """The values of a model's outputs have another meaning than the one that is taken, whatever the images."""


@dataclass(frozen=True)
class Values:
    """What the values of a model's images mean.

    Args:
        inputs: the smallest and the largest value of its inputs, unless there is a mean.
        outputs: those of its outputs, if they are images.
        mean: mean for each channel, or one for all, of images in [0, 1]: its inputs are (x − mean) / std.
        std: standard deviation likewise.
    """

    inputs: Range = (-1.0, 1.0)
    outputs: Range = (-1.0, 1.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __str__(self) -> str:
        taken, usual = f"value_range={_listed(self.inputs)}", self.inputs
        if self.mean is not None and self.std is not None:
            taken, usual = f"mean={_listed(self.mean)} std={_listed(self.std)}", Values.outputs
        return taken if self.outputs == usual else f"{taken} output_range={_listed(self.outputs)}"


def parse_values(
    value_range: Sequence[float] | str = (-1, 1),
    output_range: Sequence[float] | None = None,
    normalize: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[Values, ...]:
    """Return what options say of the values of a model: one meaning, or with `auto` those that are to be tried.

    Raises:
        InputError: an option is invalid, or two of them contradict each other.

    >>> [str(each) for each in parse_values("auto")]
    ['value_range=[-1,1]', 'value_range=[0,1]', 'value_range=[0,255]']
    >>> str(parse_values([0, 1], normalize="imagenet")[0])
    'mean=[0.485,0.456,0.406] std=[0.229,0.224,0.225] output_range=[0,1]'
    """
    if normalize is not None:
        if normalize != IMAGENET:
            raise InputError(f"normalize={normalize!r} is not imagenet or null: other numbers are set by mean and std")
        if mean is not None or std is not None:
            raise InputError("normalize=imagenet is a mean and a std: leave out either it or them")
        mean, std = MEAN, STD
    if (mean is None) != (std is None):
        raise InputError(f"mean={mean} std={std}: set both, for images in [0, 1]")
    if mean is not None and std is not None and not (0 < len(mean) == len(std) and all(each > 0 for each in std)):
        raise InputError(f"mean={list(mean)} std={list(std)} are not a number each for every channel, std above 0")
    ranges = RANGES if value_range == AUTO else (parse_range("value_range", value_range) or RANGES[0],)
    given = parse_range("output_range", output_range)
    means, deviations = (None if each is None else tuple(map(float, each)) for each in (mean, std))
    return tuple(Values(each, given or each, means, deviations) for each in ranges)


def converted(call: Call, values: Values) -> Call:
    """Return a function of images in [−1, 1] for a model whose images have other values.

    Outputs that are not 4-D, such as logits, are not changed.

    Raises:
        InputError: in a call, the mean is for another number of channels.

    >>> import torch
    >>> converted(lambda images: images.sqrt(), Values((0, 1), (0, 1)))(torch.full((1, 1, 1, 1), -0.5)).item()
    0.0
    """
    (least, greatest), (out_least, out_greatest) = values.inputs, values.outputs
    middle, half = (out_least + out_greatest) / 2, (out_greatest - out_least) / 2

    def convert(images: Tensor) -> Tensor:
        if values.mean is None or values.std is None:
            output = call(images * ((greatest - least) / 2) + (least + greatest) / 2)
        else:
            count = len(values.mean)
            if count not in (1, images.shape[1]):
                raise InputError(f"mean={_listed(values.mean)} is for {count} channels, not {images.shape[1]}")
            mean, std = (images.new_tensor(each).view(-1, 1, 1) for each in (values.mean, values.std))
            output = call(((images + 1) / 2 - mean) / std)
        return (output - middle) / half if output.ndim == 4 else output

    return call if values == Values() else convert


def doubt(source: Tensor, output: Tensor, values: Values = Values()) -> tuple[str, bool]:
    """Say in one line why outputs are hardly images of a range; and whether most of their values would be lost.

    Shape: two (N, C, H, W), converted to [−1, 1]. An empty line: there is no reason.

    >>> import torch
    >>> doubt(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2), torch.tensor([90.0, 200.0]).view(1, 1, 1, 2))
    ('outputs lie in [90,200], 100 % of them outside of [-1,1]', True)
    """
    if output.ndim != 4 or not output.isfinite().all():
        return "", False
    (least, greatest), low = values.outputs, output.min()
    outside, where = _outside(output), _where(output, values)
    if outside > SOME_OUTSIDE:
        return f"{where}, {100 * outside:.0f} % of them outside of {_listed((least, greatest))}", outside > MOST_OUTSIDE
    if least < 0 and low >= -(least + greatest) / (greatest - least) and source.min() < DARK and output.std() > VARIES:
        return f"{where}, never below zero, where {_listed((least, greatest))} is expected", False
    return "", False


def _outside(output: Tensor) -> float:
    """Return the share of values that are not in [−1, 1], nor a little beyond."""
    return (output.abs() > 1 + 2 * OVER).float().mean().item()


def _where(output: Tensor, values: Values) -> str:
    """Say between which values the model's outputs lie, before they were converted to [−1, 1]."""
    least, greatest = values.outputs
    numbers = ((each.item() * (greatest - least) + least + greatest) / 2 for each in output.aminmax())
    return f"outputs lie in [{','.join(f'{each:.3g}' for each in numbers)}]"


def tried(call: Call, meanings: Sequence[Values], source: Tensor, target: Tensor | None = None) -> tuple[Values, str]:
    """Choose the meaning of a model's values by calling it with each; return it, and in one line what was found.

    The outputs of the right one fill its range, without going beyond. Of several that do, the one with outputs nearest
    to the targets wins, without targets the one whose outputs are most like the sources in light and dark, by a clear
    margin, else the first.

    Raises:
        InputError: the model fails with each of them, or does not return images.
    """
    if len(meanings) == 1:
        return meanings[0], ""
    scores: list[tuple[float, Values, str]] = []
    failure: InputError | None = None
    for values in meanings:
        try:
            output = converted(call, values)(source)
        except InputError as error:
            failure = error
            continue
        if output.ndim != 4:
            raise InputError(
                f"value_range=auto looks at images, but the model returns {tuple(output.shape)}: set "
                "value_range=[min,max], normalize=imagenet, or mean and std"
            )
        why, lost = doubt(source, output, values)
        if target is not None and target.shape == output.shape:
            likeness = -(output - target).abs().mean().item()
        else:
            likeness = _likeness(source, output)
        penalty = 2.0 if lost or output.float().std() < VARIES else 1.0 if why else 0.0
        scores.append((likeness - penalty - 5 * _outside(output), values, why or _where(output, values)))
    if failure is not None and not scores:
        raise failure
    best = max(score for score, _, _ in scores)
    (_, values, why), *others = [each for each in scores if each[0] >= best - _MARGIN]
    also = "".join(f"; {each} fits as well" for _, each, _ in others)
    return values, f"value_range=auto took {values}: {why}{also}"


class SettledCall:
    """A model as a function of images in [−1, 1]; what its values mean is judged until its outputs tell something.

    Black images, say, tell nothing of a range. Until then, `told` is false and the meaning may become another one,
    unless `settle` was called because outputs are used.

    Args:
        call: the model, a function of images of its own values.
        meanings: of several, the one that fits is found by trying.
        notes: gets a line about what was found by trying, and another one if outputs are hardly of that range.

    Raises:
        ValuesError: in a call, most of the outputs' values would be lost, see `doubt`; or outputs tell another meaning
            than the one that is used.
    """

    def __init__(self, call: Call, meanings: Sequence[Values], notes: list[str]) -> None:
        self.call, self.meanings, self.notes = call, meanings, notes
        self.values: Values | None = None
        self.told = self.settled = False
        self.said: list[str] = []

    def settle(self) -> None:
        """Refuse other meanings from now on."""
        self.settled = True

    def __call__(self, images: Tensor, target: Tensor | None = None) -> Tensor:
        """Return the output for images (N, C, H, W); a target helps to find the meaning."""
        if self.told and self.values is not None:
            return converted(self.call, self.values)(images)
        values, said = tried(self.call, self.meanings, images, target)
        output = converted(self.call, values)(images)
        varied = images.std(correction=0) > TELLING and output.std(correction=0) > VARIES
        tells = output.ndim != 4 or bool(varied and output.isfinite().all())
        if self.settled and self.values not in (None, values):
            if tells:
                raise ValuesError(
                    f"value_range=auto took {self.values} for the first images, which tell nothing, but {values} fits "
                    "these: set it"
                )
            return converted(self.call, self.values or values)(images)
        why, lost = doubt(images, output, values)
        if lost:
            raise ValuesError(f"{why}: {_CURE}")
        self.values, self.told = values, tells
        hint = f"{why}: if that is not meant, {_CURE}"
        self.notes[:] = [each for each in self.notes if each not in self.said]
        self.said = [each for each in (said, why and hint) if each]
        self.notes += self.said
        return output


def _likeness(source: Tensor, output: Tensor) -> float:
    """Return the correlation of light and dark in source and output, at a coarse scale."""
    size = (min(16, source.shape[2]), min(16, source.shape[3]))
    rows = [nn.functional.adaptive_avg_pool2d(each.float().mean(1, True), size).flatten(1) for each in (source, output)]
    source, output = (each - each.mean(1, keepdim=True) for each in rows)
    return nn.functional.cosine_similarity(source, output, eps=1e-6).abs().mean().item()


def _listed(values: Sequence[float]) -> str:
    return f"[{','.join(f'{each:g}' for each in values)}]"
