"""Stores own the state of every record; `base.py` says what that means."""
