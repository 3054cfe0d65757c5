"""Every error that a user of `simpo` can meet.

    SimPOError (ValueError)      a user's mistake; the message names the field and the remedy
      ConfigError                a setting that cannot be honoured
      DataError                  a data source that cannot be read, or has nothing usable in it
      ModelError                 a model or tokenizer that cannot be loaded
      CheckpointError            a checkpoint that is missing, incomplete or altered
      StorageError               a disk that is full or cannot be written
    NonFiniteStep (ArithmeticError)   loss or gradient left the finite numbers; the weights have not moved

Fields go to `super().__init__`, text is made in `__str__`: such errors survive pickling, so they cross process borders.
"""


class SimPOError(ValueError):
    """A user's mistake: one sentence with the remedy, and the field it belongs to (dotted path, or None)."""

    passes = False
    """Whether nobody's setting is wrong, so that the same may go well later."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message, field)
        self.message = message
        self.field = field

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class ConfigError(SimPOError):
    """A setting that cannot be honoured."""


class ModelError(SimPOError):
    """A model or tokenizer that cannot be loaded."""


class CheckpointError(SimPOError):
    """A checkpoint that is missing, incomplete, altered or not of our making."""


class StorageError(SimPOError):
    """A disk that is full, or that may not be written: nobody's setting is wrong, and later it may go."""

    passes = True


class DataError(SimPOError):
    """A data source that cannot be read, or holds nothing usable."""

    def __init__(self, reason: str, path: str | None = None, line: int | None = None) -> None:
        super().__init__(reason, path)
        # BaseException.__reduce__ calls cls(*args): args must be this class's own arguments.
        self.args = (reason, path, line)
        self.reason = reason
        self.path = path
        self.line = line

    def __str__(self) -> str:
        place = self.path or "data"
        if self.line is not None:
            place = f"{place}, line {self.line}"
        return f"{place}: {self.reason}"


class NonFiniteStep(ArithmeticError):
    """Loss or gradient norm was not finite at a step. Raised before the optimiser moves the weights."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(step, what)
        self.step = step
        self.what = what

    def __str__(self) -> str:
        return (
            f"step {self.step}: {self.what} is not finite; the weights were not moved. "
            "Lower the learning rate or beta."
        )
