"""Adapters for libraries that draw their noise inside: one line each. Nothing is imported here."""
