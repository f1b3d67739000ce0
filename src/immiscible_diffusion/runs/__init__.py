"""One run and its folder: train, evaluate along the way, resume, export."""
