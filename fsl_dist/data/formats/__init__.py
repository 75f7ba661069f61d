"""Image files by their bytes: headers of JPEG and PNG, orientation, and the reduction of deep pixels to 8 bits."""
