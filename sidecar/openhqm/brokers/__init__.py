"""What may carry the backlog beside the Store; one module each, imported when its URL is used."""
