"""The write path: images or foreign shards become shards and a catalogue; appending, new splits and duplicates."""
