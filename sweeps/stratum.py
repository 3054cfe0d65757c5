"""Which trials of a search are drawn at random, whatever the sampler does with the others. Light."""


def in_stratum(number: int, share: float) -> bool:
    """Whether trial `number` is random: a function of its number alone, evenly spread over the search."""
    return stratum_size(number + 1, share) > stratum_size(number, share)


def stratum_size(trials: int, share: float) -> int:
    """Random ones among the first so many trials. A share that was made of a count gives back that count."""
    return int(trials * share + 1e-9)
