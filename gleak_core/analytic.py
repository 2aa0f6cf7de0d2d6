"""Placeholder until the recursion lands."""
