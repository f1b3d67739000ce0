"""What of this folder has no doctests: it needs packages of the documentation site."""

collect_ignore = ["docstrings.py"]
