"""Solvers of the linear assignment problem."""
