"""Networks that two or more papers use."""
