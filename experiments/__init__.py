"""Runs as config files: `--config=NAME[:ARGUMENT]` of the commands names one of them.

The package `dreamjax.experiments` is this folder, so that experiments elsewhere can build upon one:
`from dreamjax.experiments import quickstart`.
"""
