"""How tables show scores."""

HEADINGS = {
    "reliability.exact": "EDITS %",
    "generalization.exact": "PARAPHRASES %",
    "locality.exact": "LOCALITY %",
    "portability.exact": "PORTABILITY %",
    "perplexity": "PERPLEXITY",
}
"""The metrics that a table has room for, and what it calls them."""


def shown(metric: str, value: float | None) -> str:
    """Return a score as a table shows it: shares in percent, other numbers as they are."""
    if value is None:
        return "-"
    return f"{value:.2f}" if metric == "perplexity" else f"{100 * value:.1f}"
