"""The server that the API server asks about each Pod, and whose its configuration is."""
