"""A judgement of measured numbers in plain words; the thresholds are the constants below."""

from collections.abc import Mapping
from typing import Any

from genstab.metrics.measurements import SAME, number
from genstab.metrics.registry import metrics as registered
from genstab.metrics.registry import protocols

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

_CIRCULAR, _PERIOD, _CONSTANT = "val/shift_psnr", "val/shift_period", "val/constant_outputs"
_EDGE = "val/shift_psnr_crop_edge"  # a film shows its border, which the margin of `crop` leaves out
_CONSISTENCY = {"val/consistency": "the camera moves", "val/consistency_roll": "the image is rolled around"}


def flags(metrics: Mapping[str, Any]) -> list[str]:
    """Return the noteworthy findings as short words; a missing number raises none.

    >>> flags({"val/shift_psnr": 41.0, "val/tv": 0.05, "val/tv_target": 0.1})
    ['blurry']
    """
    known = _known(metrics)
    psnr, ratio, consistency = (
        known.get(_judged(known, _headline(known))),
        registered()["tv_ratio"].of(known),
        known.get(_consistency(known), 1.0),
    )
    constant, flat = (known.get(key, 1.0) < SAME for key in ("val/output_spread", "val/output_std"))
    raised = {
        "flickers": psnr is not None and psnr < FLICKERS,
        "random": known.get("val/noise_floor", CAP) < CAP,
        "rolling-only": bool(_behind(known)),  # another protocol is far below circular
        "uneven": bool(_uneven(known)),  # the worst or the pooled number is far below the mean
        "periodic": known.get(_PERIOD, 1) > 1,
        "partly-constant": 0 < known.get(_CONSTANT, 0) < 1,
        "blurry": ratio is not None and ratio < BLURRY,
        "busy": ratio is not None and ratio > BUSY,
        "constant": constant,
        "flat": flat,
        "capped": (constant or flat) and psnr is not None and psnr >= CAP,
        "fragile": known.get("val/corruption_relative", 1.0) > LESS_ROBUST,
        "inconsistent": consistency < INCONSISTENT,
        "inaccurate": known.get("val/accuracy", 1.0) < MOSTLY_WRONG,
    }
    return [flag for flag, is_raised in raised.items() if is_raised]


def verdict(metrics: Mapping[str, Any]) -> list[str]:
    """Judge a model by the numbers of its `summary.json`: at most six sentences, each with its number.

    They say how stable it is, by the protocol `crop` if measured, which is what a camera does, at its worst shift, or
    else by the pooled number or the mean; whether that number is reliable; and what it costs. Numbers that are missing,
    None or not finite are left out.

    >>> for sentence in verdict({"val/shift_psnr": 31.0, "val/tv": 0.05, "val/tv_target": 0.1}):
    ...     print(sentence)
    Shimmers when the image is rolled around: shift PSNR circular 31.0 dB, a change of 2.8 % of the value range.
    Its outputs are blurry, with 50 % of the targets' total variation: part of its stability comes from blur.
    """
    known, raised = _known(metrics), flags(metrics)
    if _consistency(known) or "val/accuracy" in known:
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
    """How stable the model is, and whether the number is reliable."""
    headline = _headline(known)
    if not headline:
        return []
    key, when = _judged(known, headline), _when()
    psnr, said = known[key], _said(known, key, named=True)
    border = f"; up to the border {_said(known, edge)}" if (edge := _judged(known, _EDGE)) in known else ""
    if "capped" in raised:
        sentences = [f"Not evidence of stability: {said} is the cap, which any constant output reaches."]
    elif psnr >= CAP:
        sentences = [f"Follows its input exactly {when[headline]}: {said}, the cap{border}."]
    else:
        levels = (FLICKERS, "Flickers visibly"), (STEADY, "Shimmers"), (STILL, "Is steady")
        judgement = next((words for level, words in levels if psnr < level), "No visible flicker")
        change = 100 * 10 ** (-psnr / 20)
        share = f"{change:.1f}" if change >= 1 else f"{change:.2g}"
        sentences = [f"{judgement} {when[headline]}: {said}, a change of {share} % of the value range{border}."]
    if "random" in raised:
        floor = known["val/noise_floor"]
        chance = f"Not deterministic: two runs on one input agree to {_said(known, 'val/noise_floor')}"
        if psnr > floor - NOISE:
            sentences.append(f"{chance}, so that {_said(known, key)} is indistinguishable from its noise.")
        else:
            sentences.append(f"{chance}; shifts change it more, {floor - psnr:.1f} dB below that noise floor.")
    if "rolling-only" in raised:
        others = _list(known, {_judged(known, other): when[other] for other in _behind(known)})
        circular = _said(known, _judged(known, _CIRCULAR))
        sentences.append(f"Circular shifts overstate its stability: {circular} {when[_CIRCULAR]}, but {others}.")
    reasons = _reasons(known)
    if "uneven" in raised:
        mean, hidden = _uneven(known)[0]
        rest = "; ".join(reasons) or "some shifts or some images are much worse than others"
        sentences.append(f"Uneven: the mean is {_said(known, mean)}, but {_list(known, hidden)}; {rest}.")
    elif reasons:
        said = "; ".join(reasons)
        sentences.append(f"{said[0].upper()}{said[1:]}.")
    return sentences


def _reasons(known: Mapping[str, float]) -> list[str]:
    """Why some shifts or some images are easier than others, in words."""
    reasons = []
    if (period := known.get(_PERIOD, 1)) > 1:
        reasons.append(f"a period of {period:.0f} pixels (aliasing): its multiples change the output much less")
    if 0 < (share := known.get(_CONSTANT, 0)) < 1:
        total = known.get("images", 0)
        some = f"{share * total:.0f} of {total:.0f} images" if total else f"{100 * share:.2g} % of the images"
        reasons.append(f"{some} have constant outputs, which no shift changes")
    return reasons


def _cost(known: Mapping[str, float], raised: list[str]) -> list[str]:
    """What the stability costs."""
    psnr, ratio = known.get(_judged(known, _headline(known))), registered()["tv_ratio"].of(known)
    stable = psnr is not None and psnr >= FLICKERS
    if "constant" in raised:
        spread = 100 * known["val/output_spread"]
        return [f"Produces nearly the same image for every input: outputs differ by {spread:.2g} % of the range."]
    if "flat" in raised:
        return [f"Its outputs are nearly flat: they vary by {100 * known['val/output_std']:.2g} % of the range."]
    if ratio is not None:
        share = f"{100 * ratio:.0f} % of the targets' total variation"
        if "blurry" in raised:
            return [
                f"Its outputs are blurry, with {share}"
                + (": part of its stability comes from blur." if stable else ".")
            ]
        if "busy" in raised:
            return [f"Its outputs are too busy, with {share}."]
        return [f"Not due to blur: its outputs have {share}." if stable else f"About as sharp as the targets: {share}."]
    if stable and "val/tv_target" not in known:
        shown = f" ({_said(known, 'val/tv', named=True)})" if "val/tv" in known else ""
        return [f"Without targets, blur cannot be ruled out as the reason for its {psnr:.1f} dB{shown}."]
    return []


def _classifier(known: Mapping[str, float], raised: list[str]) -> list[str]:
    sentences = []
    if key := _consistency(known):
        often = "Often" if known[key] < INCONSISTENT else "Sometimes" if known[key] < CONSISTENT else "Hardly ever"
        same = f"one class for two shifts in {100 * known[key]:.1f} % of pairs"
        sentences.append(f"{often} changes its answer when {_CONSISTENCY[key]}: {same}.")
    if "val/accuracy" in known:
        right = f"It is right in {100 * known['val/accuracy']:.1f} % of cases"
        wrong = ", less than half: a constant answer would be perfectly consistent."
        sentences.append(right + (wrong if "inaccurate" in raised else "."))
    return sentences


def _known(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key in metrics if (value := number(metrics[key])) is not None}


def _said(known: Mapping[str, float], key: str, named: bool = False) -> str:
    metric = registered()[key]
    return f"{metric.name} {metric.text(known[key])}" if named else metric.text(known[key])


def _list(known: Mapping[str, float], words: Mapping[str, str]) -> str:
    return " and ".join(f"{_said(known, key)} {each}" for key, each in words.items())


def _when() -> dict[str, str]:
    """Return what moves, in words, by the log key of each protocol; the camera first."""
    order = sorted(protocols().values(), key=lambda protocol: protocol.name != "crop")
    return {protocol.key: protocol.when for protocol in order if protocol.when}


def _headline(known: Mapping[str, float]) -> str:
    return next((key for key in _when() if key in known), "")


def _judged(known: Mapping[str, float], key: str) -> str:
    """Return the key of the number that judges a protocol: at its worst shift, or pooled, or else the mean, its `key`.

    The mean of the dB would hide every second shift, or half of the images, behind the other half.
    """
    if known.get(key, CAP) >= CAP:  # so are the others
        return key
    return next((each for each in (f"{key}_worst_shift", f"{key}_pooled") if each in known), key)


def _consistency(known: Mapping[str, float]) -> str:
    """Return the key of the consistency to judge; empty for a generator."""
    return next((key for key in _CONSISTENCY if key in known), "")


def _far_below(known: Mapping[str, float], key: str, other: str, gap: float = GAP) -> bool:
    """Return whether a number is far below another one, and low enough to be visible."""
    return {key, other} <= known.keys() and known[key] <= known[other] - gap and known[key] < STILL


def _behind(known: Mapping[str, float]) -> list[str]:
    circular = _judged(known, _CIRCULAR)
    return [key for key in _when() if key != _CIRCULAR and _far_below(known, _judged(known, key), circular)]


def _uneven(known: Mapping[str, float]) -> list[tuple[str, dict[str, str]]]:
    """Return the means that hide numbers, and those with words for them: of the headline, then of circular."""
    found = []
    for mean in dict.fromkeys((_headline(known), _CIRCULAR)):
        numbers = {"pooled": ("pooled", POOLED_GAP), "worst": ("at the worst shift and image", GAP)}
        hidden = {
            f"{mean}_{each}": words
            for each, (words, gap) in numbers.items()
            if _far_below(known, f"{mean}_{each}", mean, gap)
        }
        found += [(mean, hidden)] if hidden else []
    return found
