"""What users write and read: the AsyncProxy, its definition, annotations, conditions, names. Pure."""
