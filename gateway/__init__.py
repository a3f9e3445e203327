"""The HTTP surface and the composition root. The only package that meets Litestar, uvicorn and Prometheus."""

__version__ = "0.1.0"
