"""What other libraries need to train with ours; each module needs the library of its name."""
