"""What things look like in styles in which they were never drawn: guesses that nano learns from."""
