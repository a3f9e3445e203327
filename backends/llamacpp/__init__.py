"""Local models: one worker process around one llama.cpp engine each. Only `engine` loads llama.cpp."""
