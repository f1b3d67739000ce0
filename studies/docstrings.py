"""Docstrings and annotations as the reference shows them: an extension of griffe, which reads them (``mkdocs.yml``)."""

from typing import Any

from griffe import Expr, ExprSubscript, ExprTuple, Extension

from studies.site import readable

__all__ = ["Readable"]

SHAPED = {"Bool", "Float", "Int", "Int64", "Integer", "Shaped", "UInt8"}


def quote_shapes(expression: Any) -> None:
    """Write the shapes in an annotation, such as ``Float[Tensor, "b *dims"]``, as text and not as arithmetic."""
    if isinstance(expression, ExprSubscript) and str(expression.left) in SHAPED:
        inner = expression.slice
        if isinstance(inner, ExprTuple) and len(inner.elements) == 2:
            text = str(inner.elements[1]).strip("'\"").replace(" * ", " *")
            inner.elements = [inner.elements[0], f'"{text}"']
    if isinstance(expression, Expr):
        for part in vars(expression).values():
            for inner in part if isinstance(part, list) else [part]:
                if inner is not getattr(expression, "parent", None):
                    quote_shapes(inner)


class Readable(Extension):  # type: ignore[misc]  # griffe is not where types are checked
    """Make every docstring and signature readable, once it has been read."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Rewrite the docstring of one object, and the annotations of a function."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
        if obj.is_function:
            quote_shapes(obj.returns)
            for parameter in obj.parameters:
                quote_shapes(parameter.annotation)
