"""The one error that bad input raises."""


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
