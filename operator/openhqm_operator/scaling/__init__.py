"""How many replicas: figures of the sidecars, the law, who executes it; and how it compares with others."""
