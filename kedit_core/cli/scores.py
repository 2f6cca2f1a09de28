"""How tables show scores."""

HEADINGS = {
    "reliability.exact": "REL %",
    "generalization.exact": "GEN %",
    "locality.exact": "LOC %",
    "portability.exact": "PORT %",
    "perplexity": "PPL",
}
"""The metrics that a table has room for, by the short names of the field."""


def shown(metric: str, value: float | None) -> str:
    """Return a score as a table shows it: shares in percent, other numbers as they are."""
    if value is None:
        return "-"
    return f"{value:.2f}" if metric == "perplexity" else f"{100 * value:.1f}"
