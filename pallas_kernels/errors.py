"""The one exception of the kernels."""


class UnsupportedShapeError(ValueError):
    """The kernel does not take these shapes or dtypes; the message says why."""
