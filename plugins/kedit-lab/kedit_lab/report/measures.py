"""Which metrics a report draws, and how each is called and written."""

from collections.abc import Callable, Iterable, Iterator

from attrs import frozen

from kedit_lab.report.wording import percent, quantity

_AXES = {
    "reliability": ("Reliability", "the edit’s own prompt"),
    "generalization": ("Generalization", "the same asked in other words"),
    "locality": ("Locality", "what must not change"),
    "portability": ("Portability", "what should follow"),
}
_PROTOCOLS = {
    "exact": "exact answer",
    "token": "share of right tokens",
    "contains": "the answer somewhere in the text",
    "preference": "likelier than the old answer",
    "unchanged": "tokens as before the edits",
    "probability": "probability of the answer",
    "kl": "nats away from the unedited model",
}
_GROUPS = {
    "near": ("Neighbours", "close facts that must not change"),
    "kept": ("Other facts", "unrelated facts that must not change"),
}
_MODEL = {
    "perplexity": ("Perplexity", "of held-out text", False),
    "drift": ("Drift", "relative growth of the edited weights’ norm", False),
    "fluency": ("Fluency", "entropy of what the model writes, bits", True),
}
_SHARES = frozenset(_PROTOCOLS) - {"kl"}
_PANELS = 9


@frozen(kw_only=True)
class Measure:
    """One metric as a reader meets it.

    Attributes:
        metric: its name.
        title: a word or two.
        about: what it says.
        share: it is between 0 and 1, and written in percent.
        rises: more is better; None where nobody knows.
    """

    metric: str
    title: str
    about: str
    share: bool
    rises: bool | None

    @property
    def said(self) -> Callable[[float], str]:
        """Return how its values are written."""
        return percent if self.share else quantity


def measure(metric: str) -> Measure:
    """Return how a metric is shown; one that is not known keeps its own name."""
    name, _, group = metric.partition(":")
    axis, _, protocol = name.partition(".")
    if name in _MODEL:
        title, about, rises = _MODEL[name]
        return Measure(metric=metric, title=title, about=about, share=False, rises=rises)
    if axis not in _AXES or protocol not in _PROTOCOLS:
        return Measure(metric=metric, title=metric, about="", share=False, rises=None)
    title, about = _AXES[axis]
    if group:
        title, about = _GROUPS.get(group, (f"{title}: {group}", about))
    return Measure(
        metric=metric,
        title=title,
        about=f"{about}; {_PROTOCOLS[protocol]}",
        share=protocol in _SHARES,
        rises=protocol != "kl",
    )


def drawn(metrics: Iterable[str]) -> list[Measure]:
    """Return what gets a panel, the most telling first: of each axis one protocol, its groups apart."""
    there = sorted(set(metrics))
    found = [*_of_axes(there), *(name for name in _MODEL if name in there)]
    known = set(_MODEL)
    strange = [one for one in there if one not in known and not measure(one).about]
    return [measure(one) for one in [*found, *strange][:_PANELS]]


def of_axis(axis: str, metrics: Iterable[str]) -> str | None:
    """Return the metric that speaks for an axis: of the protocols that were asked for, the strictest."""
    there = set(metrics)
    names = (f"{axis}.{protocol}" for protocol in _PROTOCOLS)
    return next((name for name in names if name in there), None)


def all_measures(metrics: Iterable[str]) -> list[Measure]:
    """Return every metric, in the order of a table."""
    there = sorted(set(metrics), key=_rank)
    return [measure(one) for one in there]


def _rank(metric: str) -> tuple[int, int, str]:
    name, _, group = metric.partition(":")
    axis, _, protocol = name.partition(".")
    known = ["", *_GROUPS]
    place = f"{known.index(group) if group in known else len(known)}{group}"
    if name in _MODEL:
        return len(_AXES), list(_MODEL).index(name), place
    if axis in _AXES and protocol in _PROTOCOLS:
        return list(_AXES).index(axis), list(_PROTOCOLS).index(protocol), place
    return len(_AXES) + 1, 0, metric


def _of_axes(there: list[str]) -> Iterator[str]:
    for axis in _AXES:
        main = of_axis(axis, there)
        if main is None:
            continue
        groups = [one for one in there if one.startswith(f"{main}:")]
        known = [f"{main}:{group}" for group in _GROUPS if f"{main}:{group}" in groups]
        rest = [one for one in groups if one not in known]
        yield from [*known, *rest] if groups and axis == "locality" else [main]
