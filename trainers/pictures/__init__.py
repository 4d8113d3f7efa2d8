"""Pictures in and out: reading a user's image and drawing results."""
