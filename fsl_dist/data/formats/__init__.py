"""Image files by their bytes: what a JPEG or PNG header says, which way a picture is turned, how deep pixels become 8 bits."""
