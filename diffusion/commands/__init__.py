"""What each command of ``flashpoint`` does, given its options by name."""
