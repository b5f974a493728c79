"""What stands in for a workload at zero: its manifests, and which of them are there when. Pure."""
