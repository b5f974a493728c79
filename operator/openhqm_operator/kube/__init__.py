"""The API server: calls and their errors, watches and their caches, the queue of keys, election, Events."""
