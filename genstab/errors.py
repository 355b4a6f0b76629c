"""The one error that bad input raises, and the check that everything needs."""


class InputError(ValueError):
    """Bad input: the message names the thing, its value and what is allowed.

    The command line prints it as one line, without a traceback; everything else that goes wrong is a defect and
    keeps its traceback.

    >>> from genstab.filters import taps
    >>> taps("tri9")
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: filter='tri9' is not one of none, rect2, tri3, bin4, bin5, bin6, bin7
    """


def check_counts(**counts: object) -> None:
    """Raise an `InputError` that names the first argument that is not an integer of at least 1.

    >>> check_counts(channels=64, levels=0)
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: levels=0 is not an integer of at least 1
    """
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise InputError(f"{name}={count} is not an integer of at least 1")
