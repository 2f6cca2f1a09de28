"""The lab: the field's data sets and metrics, and a report to look at."""
