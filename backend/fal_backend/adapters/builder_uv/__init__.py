"""Images from `requirements`, built by uv."""

from fal_backend.adapters.builder_uv.builder import UvBuilder

__all__ = ["UvBuilder"]
