"""/schema: the OpenAPI document as JSON, and a page that shows it without fetching anything from anywhere."""

from html import escape
from typing import Any

from litestar import Request
from litestar.openapi.plugins import OpenAPIRenderPlugin

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "code{font-family:ui-monospace,monospace}details{border-bottom:1px solid #ddd;padding:.5rem 0}summary{cursor:pointer}"
    "b{display:inline-block;width:4.5rem;color:#06c}pre{background:#f6f6f6;padding:.75rem;overflow:auto}"
)


class SchemaPage(OpenAPIRenderPlugin):
    """A plain list of operations; Litestar's own pages load scripts from elsewhere."""

    def __init__(self) -> None:
        super().__init__(path="/", media_type="text/html")  # type: ignore[arg-type]

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        groups: dict[str, list[str]] = {}
        for path, operations in sorted(openapi_schema.get("paths", {}).items()):
            for method, operation in operations.items():
                if isinstance(operation, dict) and "responses" in operation:
                    tag = (operation.get("tags") or ["Other"])[0]
                    groups.setdefault(tag, []).append(_operation(method, path, operation))
        sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(items)}" for tag, items in groups.items())
        info = openapi_schema["info"]
        title = f"{escape(info['title'])} {escape(info['version'])}"
        head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        note = "<p>The same as a document for tools: <a href='/schema/openapi.json'>/schema/openapi.json</a></p>"
        return f"{head}<h1>{title}</h1>{note}{sections}</html>".encode()


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    words = escape(operation.get("description") or "")
    answers = ", ".join(sorted(map(str, operation["responses"])))
    return (
        f"<details><summary><b>{method.upper()}</b><code>{escape(path)}</code> {escape(operation.get('summary') or '')}</summary>"
        f"<p>{words}</p><p>Answers: {answers}</p></details>"
    )
