"""Adapters on disk and in a draft: folders, names, LoRA put on and taken off, PEFT."""
