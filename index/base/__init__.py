"""What all packages need: errors, settings, files, object stores and atomic publishing."""
