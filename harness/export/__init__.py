"""What a pair or a run becomes elsewhere: model folders, GGUF and PEFT files with their card and flags, profiles and records of a run."""
