"""The page of a study; it receives results, never models."""
