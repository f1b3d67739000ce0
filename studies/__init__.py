"""The papers' tables and figures, and the pages over all recorded results: `python -m studies`."""
