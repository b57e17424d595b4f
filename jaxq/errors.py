"""Every error that a user can cause. Each message names the layer or the argument and says the mend."""


class JaxqError(Exception):
    """Base of all errors that jaxq raises on purpose."""


class TraceError(JaxqError):
    """The function could not be traced, or its trace holds what inference cannot have (batch statistics, dropout)."""


class UnsupportedError(JaxqError):
    """The request is well formed, but jaxq has no way to carry it out."""


class CalibrationError(JaxqError):
    """The calibration batches are missing, malformed, or hold values that no scale fits."""


class PlanError(JaxqError):
    """A plan, or the file that holds one, is damaged, foreign, from a newer jaxq, or used with other inputs."""
