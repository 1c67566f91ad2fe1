"""The exceptions this library raises on purpose; each message names what, where and the mend."""


class CadenzaError(Exception):
    """Something a user can mend."""


class SpecError(CadenzaError):
    """A spec does not describe something that can be built."""


class RequestError(CadenzaError):
    """A request asks for something the system cannot do."""


class AudioError(CadenzaError):
    """An audio file or signal cannot be used."""


class DataError(CadenzaError):
    """A data set, manifest or store cannot be used."""


class CheckpointError(CadenzaError):
    """A saved system or training state cannot be loaded or written."""


class TrainingError(CadenzaError):
    """Training cannot start or go on."""


class BenchmarkError(CadenzaError):
    """A measurement cannot be made, or would mean nothing."""
