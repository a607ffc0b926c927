"""What the commands in scripts/ and the tests share; nothing here is run by itself."""
