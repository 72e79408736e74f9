"""Carry out what the domain wants, through ports."""
