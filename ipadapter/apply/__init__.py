"""What an Apply node asks for, without a host."""
