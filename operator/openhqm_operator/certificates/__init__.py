"""Certificates of our own servers: when which is replaced, who writes them, who shows them."""
