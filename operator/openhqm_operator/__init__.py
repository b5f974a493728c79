"""The control plane: reconciles annotated workloads. Imports openhqm, never the other way."""
