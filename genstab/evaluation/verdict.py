"""A judgement of measured numbers in plain words; the thresholds are the constants below."""

from collections.abc import Mapping
from typing import Any

from genstab.metrics.measurements import SAME, is_constant, number
from genstab.metrics.protocols import PROTOCOLS, Protocol
from genstab.metrics.registry import metrics

# A shift PSNR of d dB is a root mean square change of 10^(−d/20) of the value range. One of 255 grey levels, about the
# smallest step that a display shows and the eye sees, is 48 dB; on texture the eye needs several.
FLICKERS = 25.0  # dB; below, shifts change the output by more than 5.6 % of the range, 14 grey levels: obvious
STEADY = 35.0  # dB; below, by more than 1.8 %, 4.5 grey levels: a shimmer in plain areas
STILL = 45.0  # dB; from here on by at most 0.6 %, 1.4 grey levels: hardly visible
CAP = 100.0  # dB of an output that does not change at all
# dB, 10 times the error, by which rolling must exceed another protocol, or the mean the worst shift, to be mentioned,
# if the lower number is visible (below `STILL`). Trained U-Nets stay within 7 dB of their mean at their worst.
GAP = 10.0
# dB, twice the squared error, by which the mean must exceed the pooled number to be mentioned: a few constant images or
# easy shifts, 100 dB each, dominate the mean. Trained U-Nets stay within 1.3 dB.
POOLED_GAP = 3.0
NOISE = 3.0  # dB; a shift PSNR less than this below the noise floor owes at least half of its error to noise
BLURRY, BUSY = 0.75, 1.25  # total variation of outputs relative to targets: detail is missing; there is too much
LESS_ROBUST, MORE_ROBUST = 1.1, 0.9  # corruption error relative to the baseline
INCONSISTENT, CONSISTENT = 0.9, 0.98  # of pairs of shifts; plain ImageNet classifiers have 0.8 to 0.9 (Zhang 2019)
MOSTLY_WRONG = 0.5  # accuracy

Known = Mapping[str, float]


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """Judge a model by the numbers of its `summary.json`: at most seven sentences.

    They say how stable it is, by the protocol `crop` if measured, which is what a camera does, at its worst shift, or
    else by the pooled number or the mean; whether that number is reliable; and what it costs. Numbers that are missing,
    None or not finite are left out.

    >>> for sentence in verdict({"val/shift_psnr": 31.0, "val/tv": 0.05, "val/tv_target": 0.1}):
    ...     print(sentence)
    Shimmers when the image is rolled around: 31.0 dB, a change of 2.8 % of the value range.
    Blurry, which makes it more stable: 50 % of the targets' total variation.
    """
    known = {key: value for key in summary if (value := number(summary[key])) is not None}
    parts = (
        _flatness,
        _stability,
        _border,
        _noise,
        _rolling,
        _unevenness,
        _sharpness,
        _consistency,
        _accuracy,
        _robustness,
    )
    return [sentence for part in parts if (sentence := part(known))]


def _flatness(known: Known) -> str:
    """Say first what makes any stability worthless."""
    for key, words in (
        ("val/output_spread", "Produces nearly the same image for every input: outputs differ"),
        ("val/output_std", "Its outputs are nearly flat: they vary"),
    ):
        if known.get(key, 1) < SAME and "val/consistency" not in known:  # not a classifier
            return f"{words} by {100 * known[key]:.2g} % of the value range."
    return ""


def _stability(known: Known) -> str:
    if (headline := _headline(known)) is None:
        return ""
    psnr, said = _judged(known, headline)
    if psnr >= CAP:
        if is_constant(known):
            return f"No evidence of stability: constant outputs always reach {said}, the cap."
        return f"Follows its input exactly {headline.when}: {said}, the cap."
    levels = (FLICKERS, "Flickers visibly"), (STEADY, "Shimmers"), (STILL, "Is steady")
    judgement = next((words for level, words in levels if psnr < level), "No visible flicker")
    change = 100 * 10 ** (-psnr / 20)
    share = f"{change:.1f}" if change >= 1 else f"{change:.2g}"
    return f"{judgement} {headline.when}: {said}, a change of {share} % of the value range."


def _border(known: Known) -> str:
    """A film shows its border, which the margin of `crop` leaves out."""
    edge = PROTOCOLS["crop_edge"]
    return f"Up to the border: {_judged(known, edge)[1]}." if known.get(edge.key, CAP) < CAP else ""


def _noise(known: Known) -> str:
    headline, floor = _headline(known), known.get("val/noise_floor", CAP)
    if headline is None or floor >= CAP:
        return ""
    chance = f"Not deterministic (noise floor {_text(known, 'val/noise_floor')})"
    if _judged(known, headline)[0] > floor - NOISE:
        return f"{chance}: shifts change its output hardly more than noise does."
    return f"{chance}, but shifts change its output more."


def _rolling(known: Known) -> str:
    circular = PROTOCOLS["circular"]
    if circular.key not in known:
        return ""
    psnr, said = _judged(known, circular)
    others = [(*_judged(known, each), each.when) for each in _measured(known) if each is not circular]
    behind = [f"{words} {when}" for other, words, when in others if other <= psnr - GAP and other < STILL]
    return f"Circular shifts overstate its stability: {said}, but {' and '.join(behind)}." if behind else ""


def _unevenness(known: Known) -> str:
    """Say if the mean hides much lower numbers, and why some shifts or some images are easier than others."""
    reasons = []
    if (period := known.get("val/shift_period", 1)) > 1:
        reasons.append(f"aliasing: shifts by multiples of {period:.0f} pixels change the output much less")
    if 0 < (share := known.get("val/constant_outputs", 0)) < 1:
        total = known.get("images", 0)
        some = f"{share * total:.0f} of {total:.0f}" if total else f"{100 * share:.2g} % of the"
        reasons.append(f"{some} outputs are constant, which no shift changes")
    said = "; ".join(reasons)
    headline = _headline(known)
    for key in dict.fromkeys([headline.key, "val/shift_psnr"] if headline else []):
        numbers = (f"{key}_pooled", POOLED_GAP, "pooled"), (f"{key}_worst", GAP, "at the worst shift and image")
        hidden = [
            f"{_text(known, each)} {words}"
            for each, gap, words in numbers
            if {each, key} <= known.keys() and known[each] <= known[key] - gap and known[each] < STILL
        ]
        if hidden:
            said = "; ".join([f"uneven: a mean of {_text(known, key)}, but {' and '.join(hidden)}", *reasons])
            break
    return f"{said[0].upper()}{said[1:]}." if said else ""


def _sharpness(known: Known) -> str:
    if "val/consistency" in known or _flatness(known):  # a classifier, or nothing to judge
        return ""
    headline, ratio = _headline(known), metrics()["tv_ratio"].of(known)
    stable = headline is not None and _judged(known, headline)[0] >= FLICKERS
    if ratio is not None:
        blurry = "Blurry, which makes it more stable" if stable else "Blurry"
        sharp = blurry if ratio < BLURRY else "Too busy" if ratio > BUSY else "About as sharp as the targets"
        return f"{sharp}: {100 * ratio:.0f} % of the targets' total variation."
    if stable and "val/tv_target" not in known:
        shown = f" ({metrics()['val/tv'].name} {_text(known, 'val/tv')})" if "val/tv" in known else ""
        return f"Without targets, blur cannot be ruled out as the reason{shown}."
    return ""


def _consistency(known: Known) -> str:
    if is_constant(known) and "val/consistency" in known:
        return "No evidence of stability: it gives the same class to every image."
    for key, when in (("val/consistency", "the camera moves"), ("val/consistency_roll", "the image is rolled around")):
        if (share := known.get(key)) is not None:
            often = "Often" if share < INCONSISTENT else "Sometimes" if share < CONSISTENT else "Hardly ever"
            return f"{often} changes its answer when {when}: the same class in {100 * share:.1f} % of pairs of shifts."
    return ""


def _accuracy(known: Known) -> str:
    if (right := known.get("val/accuracy")) is None:
        return ""
    wrong = ", less than half: a constant answer would be perfectly consistent" if right < MOSTLY_WRONG else ""
    return f"Right in {100 * right:.1f} % of cases{wrong}."


def _robustness(known: Known) -> str:
    if (relative := known.get("val/corruption_relative")) is None:
        return ""
    more = "More robust to corruptions than" if relative < MORE_ROBUST else "Less robust to corruptions than"
    side = more if not MORE_ROBUST <= relative <= LESS_ROBUST else "About as robust to corruptions as"
    return f"{side} the baseline: errors {relative:.2f} times as large."


def _text(known: Known, key: str) -> str:
    return metrics()[key].text(known[key])


def _measured(known: Known) -> list[Protocol]:
    """Return the protocols that were measured and have words for a verdict, the camera first."""
    order = sorted(PROTOCOLS.values(), key=lambda each: each.name != "crop")
    return [each for each in order if each.when and each.key in known]


def _headline(known: Known) -> Protocol | None:
    return next(iter(_measured(known)), None)


def _judged(known: Known, protocol: Protocol) -> tuple[float, str]:
    """Return the dB that judge a protocol, and with words for them: at its worst shift, pooled, or else the mean.

    The mean of the dB would hide every second shift, or half of the images, behind the other half.
    """
    key = protocol.key
    if known[key] < CAP:  # or so are the others
        for lower, words in ((f"{key}_worst_shift", "at the worst shift"), (f"{key}_pooled", "pooled")):
            if lower in known:
                return known[lower], f"{_text(known, lower)} {words}"
    return known[key], _text(known, key)
