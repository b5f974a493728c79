"""OpenHQM: a durable queue in front of any HTTP app, without touching the app."""

__version__ = "0.2.0"
