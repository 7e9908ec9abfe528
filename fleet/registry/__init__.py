"""What may be installed: models, releases, their signatures, and the two TUF repositories that name them."""
