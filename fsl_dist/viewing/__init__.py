"""What the browser application shows: answers, neighbours, activation maps, and corrections of labels."""
