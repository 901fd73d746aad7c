"""The service: change events in, predictions to Redis, enriched events out."""

__version__ = "0.1.0"
