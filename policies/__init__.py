"""Decisions: who may do what, how much of it, where it goes, and in which words."""
