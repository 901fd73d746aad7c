"""A whole shop in one process: embedded broker and store, real listings, broken events, a summary. See README.md."""
