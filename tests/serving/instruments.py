"""Instruments that remember what they were told, in the place of Ray's."""

from collections import defaultdict

from service.serving.engine_metrics import Kit, Tags

Labels = frozenset[tuple[str, str]]


class Told:
    """All that was told, by name of the metric."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}
        """Name -> counter, gauge or histogram."""
        self.values: dict[str, dict[Labels, list[float]]] = defaultdict(lambda: defaultdict(list))

    @property
    def kit(self) -> Kit:
        return Kit(
            counter=lambda name, description, tags: self._made("counter", name, tags),
            gauge=lambda name, description, tags: self._made("gauge", name, tags),
            histogram=lambda name, description, boundaries, tags: self._made("histogram", name, tags),
        )

    def of(self, name: str, **labels: str) -> list[float]:
        """What a metric was told under labels that hold these, in order."""
        wanted = set(labels.items())
        return [value for tags, values in self.values[name].items() if wanted <= tags for value in values]

    def _made(self, kind: str, name: str, tags: tuple[str, ...]) -> "Instrument":
        assert name not in self.kinds
        self.kinds[name] = kind
        return Instrument(self.values[name], set(tags))


class Instrument:
    """Any of the three. As Ray's it refuses labels that it was not made with."""

    def __init__(self, values: dict[Labels, list[float]], tags: set[str]) -> None:
        self._values = values
        self._tags = tags

    def inc(self, value: float, tags: Tags) -> None:
        assert value > 0
        self.set(value, tags)

    def set(self, value: float, tags: Tags) -> None:
        assert set(tags) == self._tags
        self._values[frozenset(tags.items())].append(value)

    def observe(self, value: float, tags: Tags) -> None:
        self.set(value, tags)
