"""One picture in every file format, and what it shows."""
