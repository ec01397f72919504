"""What a message looks like to others: headers, what goes along with a body, and how large it may be."""
