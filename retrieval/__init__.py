"""Knowledge: collections of documents, their chunks and vectors, and the way from a question to passages."""
