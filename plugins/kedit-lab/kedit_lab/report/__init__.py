"""The report of a run: one HTML file to look at, that asks nothing of any network.

``kedit_lab.report.page.page`` returns it; nothing here imports torch.
"""
