"""What an adapter has to know, and how it is found."""
