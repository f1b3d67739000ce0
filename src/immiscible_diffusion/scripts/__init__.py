"""Run training scripts of others unmodified, with their noise draw replaced by a coupling's."""
