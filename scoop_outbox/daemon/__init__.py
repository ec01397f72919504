"""What runs: the relay, the workers, and the hints between them."""
