"""Offline training: recipes in, runs and artifacts out. Only the command line and the tests import it."""
