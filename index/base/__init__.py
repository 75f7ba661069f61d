"""What every package needs: errors, settings, files, object stores and atomic publishing."""
