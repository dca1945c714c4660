"""Preference-distribution constructors and their token filters."""
