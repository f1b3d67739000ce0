"""Experiment files: one TOML file is a table or a figure; its grid is the runs behind it."""
