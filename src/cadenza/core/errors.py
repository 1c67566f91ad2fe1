"""The exceptions this library raises on purpose; each message names the subject, the problem and the fix."""


class CadenzaError(Exception):
    """Base class: a problem that the user can fix."""


class SpecError(CadenzaError):
    """A spec that cannot be built."""


class RequestError(CadenzaError):
    """A request that the system cannot serve."""


class AudioError(CadenzaError):
    """An audio file or signal that cannot be used."""


class DataError(CadenzaError):
    """A data set, manifest or store that cannot be used."""


class CheckpointError(CadenzaError):
    """A saved system or training state that cannot be loaded or written."""


class TrainingError(CadenzaError):
    """Training that cannot start or continue."""


class BenchmarkError(CadenzaError):
    """A measurement that cannot be made, or would be meaningless."""
