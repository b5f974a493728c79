"""What a Pod with a sidecar looks like, and which way traffic reaches it. Pure."""
