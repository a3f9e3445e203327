"""What only administrators reach."""
