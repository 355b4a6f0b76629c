"""A judgement in plain words of measured numbers; the thresholds are the constants below."""

import math
from collections.abc import Mapping
from typing import Any

# A shift PSNR of d dB is a root mean square change of 10^(−d/20) of the value range. One of 255 grey levels, about the
# least step that a display shows and the eye sees, is 48 dB; the eye needs several where there is texture.
FLICKERS = 25.0
"""dB; below, shifts change the output by more than 5.6 % of the range, 14 grey levels: visible at a glance."""
STEADY = 35.0
"""dB; below, by more than 1.8 %, 4.5 grey levels: a shimmer, seen in plain areas."""
STILL = 45.0
"""dB; from here on by at most 0.6 %, 1.4 grey levels: hardly anybody sees it."""
CAP = 100.0
"""dB; what no change at all counts as."""
GAP = 10.0
"""dB, 10 times the error, by which rolling must beat another protocol, or the mean the worst shift, to be mentioned;
only if the lesser can be seen (below `STILL`). Trained U-Nets stay within 7 dB of their mean at their worst."""
NOISE = 3.0
"""dB; a shift PSNR less than so far below the noise floor owes half of its error or more to chance."""
BLURRY, BUSY = 0.75, 1.25
"""Total variation of outputs by that of targets: below, detail is missing; above, there is too much."""
SAME = 0.01
"""Share of the value range, 2.6 grey levels: outputs that differ less from each other are one picture."""
LESS_ROBUST, MORE_ROBUST = 1.1, 0.9
"""Corruption error by the baseline's."""
INCONSISTENT, CONSISTENT = 0.9, 0.98
"""Share of pairs of shifts with one class; plain ImageNet classifiers have 0.8 to 0.9 (Zhang 2019)."""
MOSTLY_WRONG = 0.5
"""Accuracy below which a classifier is wrong more often than right."""

FLAGS = {
    "flickers": "shift PSNR below `FLICKERS`",
    "random": "two runs on one input differ",
    "rolling-only": "crop or fractional is `GAP` or more below circular, and below `STILL`",
    "uneven": "the worst shift is `GAP` or more below the mean, and below `STILL`",
    "blurry": "total variation below `BLURRY` of the targets'",
    "busy": "total variation above `BUSY` of the targets'",
    "constant": "outputs of different images differ by less than `SAME`",
    "flat": "the standard deviation within an output is less than `SAME`",
    "capped": "shift PSNR at the `CAP`, and constant or flat",
    "fragile": "corruption error above `LESS_ROBUST` of the baseline's",
    "inconsistent": "consistency below `INCONSISTENT`",
    "inaccurate": "accuracy below `MOSTLY_WRONG`",
}
"""What `flags` may return, and when."""

_CIRCULAR, _CROP, _FRACTIONAL = "val/shift_psnr", "val/shift_psnr_crop", "val/shift_psnr_fractional"
_WHEN = {
    _CROP: ("shift PSNR crop", "when the camera moves"),
    _CIRCULAR: ("shift PSNR", "when the image is rolled around"),
    _FRACTIONAL: ("shift PSNR fractional", "when the image moves by fractions of a pixel"),
}


def flags(metrics: Mapping[str, Any]) -> list[str]:
    """Return what is noteworthy as short words, in the order of `FLAGS`; a missing number raises none.

    `val/output_spread` (root mean square distance between outputs of different images) and `val/output_std` (standard
    deviation within an output) are shares of the value range.

    >>> flags({"val/shift_psnr": 41.0, "val/tv": 0.05, "val/tv_target": 0.1})
    ['blurry']
    """
    known = _known(metrics)
    psnr, ratio = known.get(_headline(known) or ""), _sharpness(known)
    plain = known.get("val/output_spread", 1.0) < SAME or known.get("val/output_std", 1.0) < SAME
    raised = {
        "flickers": psnr is not None and psnr < FLICKERS,
        "random": known.get("val/noise_floor", CAP) < CAP,
        "rolling-only": bool(_behind(known)),
        "uneven": _far_below(known, "val/shift_psnr_worst"),
        "blurry": ratio is not None and ratio < BLURRY,
        "busy": ratio is not None and ratio > BUSY,
        "constant": known.get("val/output_spread", 1.0) < SAME,
        "flat": known.get("val/output_std", 1.0) < SAME,
        "capped": plain and psnr is not None and psnr >= CAP,
        "fragile": known.get("val/corruption_relative", 1.0) > LESS_ROBUST,
        "inconsistent": _consistency(known)[1] < INCONSISTENT,
        "inaccurate": known.get("val/accuracy", 1.0) < MOSTLY_WRONG,
    }
    return [flag for flag in FLAGS if raised[flag]]


def verdict(metrics: Mapping[str, Any]) -> list[str]:
    """Judge a model from the numbers of its `summary.json`: at most six sentences, each with its number.

    How stable, by `val/shift_psnr_crop` where there is one, which is what a camera does; whether that number can be
    believed; what it costs. Nothing is said of a number that is missing, None or not finite. No sentence judges
    corruption without a baseline.

    >>> for sentence in verdict({"val/shift_psnr": 31.0, "val/tv": 0.05, "val/tv_target": 0.1}):
    ...     print(sentence)
    Shimmers when the image is rolled around: shift PSNR 31.0 dB, a change of 2.8 % of the value range.
    Its outputs are blurry, with 50 % of the targets' total variation: a part of the stability is blur.
    """
    known, raised = _known(metrics), flags(metrics)
    if _consistency(known)[0] or "val/accuracy" in known:
        sentences = _classifier(known, raised)
    else:
        sentences = [*_stability(known, raised), *_cost(known, raised)]
    relative = known.get("val/corruption_relative")
    if relative is not None:
        side = "More" if relative < MORE_ROBUST else "Less" if relative > LESS_ROBUST else "About as"
        link = "as" if side == "About as" else "than"
        sentences.append(f"{side} robust to corruptions {link} the baseline: errors {relative:.2f} times as large.")
    return sentences


def _stability(known: Mapping[str, float], raised: list[str]) -> list[str]:
    """How stable, and whether the number can be believed."""
    key = _headline(known)
    if key is None:
        return []
    psnr, (name, when) = known[key], _WHEN[key]
    if "capped" in raised:
        sentences = [f"Says nothing of stability: {name} {psnr:.1f} dB, the cap, is what any constant output gets."]
    elif psnr >= CAP:
        sentences = [f"Follows its input exactly {when}: {name} {psnr:.1f} dB, the most that is counted."]
    else:
        levels = (FLICKERS, "Flickers visibly"), (STEADY, "Shimmers"), (STILL, "Is steady")
        judgement = next((words for level, words in levels if psnr < level), "Holds still to the eye")
        change = 100 * 10 ** (-psnr / 20)
        share = f"{change:.1f}" if change >= 1 else f"{change:.2g}"
        sentences = [f"{judgement} {when}: {name} {psnr:.1f} dB, a change of {share} % of the value range."]
    if "random" in raised:
        floor = known["val/noise_floor"]
        chance = f"Not deterministic: two runs on one input agree to {floor:.1f} dB"
        if psnr > floor - NOISE:
            sentences.append(f"{chance}, so that {psnr:.1f} dB can't be told from its noise.")
        else:
            sentences.append(f"{chance}; shifts change it more, {floor - psnr:.1f} dB below that noise floor.")
    if "rolling-only" in raised:
        # what lies behind: new content at the border, or a grid of whole pixels
        others = " and ".join(f"{known[other]:.1f} dB {_WHEN[other][1]}" for other in _behind(known))
        sentences.append(f"Rolling flatters it: {known[_CIRCULAR]:.1f} dB {_WHEN[_CIRCULAR][1]}, but {others}.")
    if "uneven" in raised:
        worst = known["val/shift_psnr_worst"]
        sentences.append(
            f"Uneven: at its worst shift and image {worst:.1f} dB, while the mean is {known[_CIRCULAR]:.1f} dB;"
            " some shifts or some pictures are much worse than others."
        )
    return sentences


def _cost(known: Mapping[str, float], raised: list[str]) -> list[str]:
    """What the stability is bought with."""
    psnr, ratio = known.get(_headline(known) or ""), _sharpness(known)
    stable = psnr is not None and psnr >= FLICKERS
    if "constant" in raised:
        spread = 100 * known["val/output_spread"]
        return [f"Draws nearly the same picture whatever the input: outputs differ by {spread:.2g} % of the range."]
    if "flat" in raised:
        return [f"Its outputs are nearly flat: they vary by {100 * known['val/output_std']:.2g} % of the range."]
    if ratio is not None:
        share = f"{100 * ratio:.0f} % of the targets' total variation"
        if "blurry" in raised:
            return [f"Its outputs are blurry, with {share}" + (": a part of the stability is blur." if stable else ".")]
        if "busy" in raised:
            return [f"Its outputs are too busy, with {share}."]
        return [f"Not bought with blur: {share}." if stable else f"About as sharp as the targets: {share}."]
    if stable and "val/tv_target" not in known:
        shown = f" (total variation {known['val/tv']:.3f})" if "val/tv" in known else ""
        return [f"Whether its {psnr:.1f} dB are bought with blur{shown} can't be judged without targets."]
    return []


def _classifier(known: Mapping[str, float], raised: list[str]) -> list[str]:
    sentences, (moves, share) = [], _consistency(known)
    if moves:
        often = "Often" if share < INCONSISTENT else "Sometimes" if share < CONSISTENT else "Hardly ever"
        same = f"one class for two shifts in {100 * share:.1f} % of pairs"
        sentences.append(f"{often} changes its answer when {moves}: {same}.")
    if "val/accuracy" in known:
        right = f"It is right in {100 * known['val/accuracy']:.1f} % of cases"
        wrong = ", less than half: a constant answer would be perfectly consistent."
        sentences.append(right + (wrong if "inaccurate" in raised else "."))
    return sentences


def _known(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)}


def _headline(known: Mapping[str, float]) -> str | None:
    return next((key for key in _WHEN if key in known), None)


def _far_below(known: Mapping[str, float], key: str) -> bool:
    """Whether a number is far below the mean of the protocol circular, and visibly."""
    return {key, _CIRCULAR} <= known.keys() and known[key] <= known[_CIRCULAR] - GAP and known[key] < STILL


def _behind(known: Mapping[str, float]) -> list[str]:
    return [other for other in (_CROP, _FRACTIONAL) if _far_below(known, other)]


def _sharpness(known: Mapping[str, float]) -> float | None:
    """Total variation of the outputs by the targets'; None without targets or if they are flat."""
    target = known.get("val/tv_target", 0.0)
    return known["val/tv"] / target if "val/tv" in known and target > 0 else None


def _consistency(known: Mapping[str, float]) -> tuple[str, float]:
    """What moved and the consistency; ("", 1) for what is no classifier."""
    if "val/consistency" in known:
        return "the camera moves", known["val/consistency"]
    if "val/consistency_roll" in known:
        return "the image is rolled around", known["val/consistency_roll"]
    return "", 1.0
