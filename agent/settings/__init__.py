"""What is done with settings: they are loaded from all their places, and what others say is checked and laid over them."""
