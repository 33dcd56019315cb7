"""Pages from templates: what every page has, and how values are written."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from generator.nightly.report.charts import number
from generator.nightly.report.nights import COLUMNS
from generator.web.access import Caller
from generator.web.context import WebContext
from generator.web.guard import CONSOLE
from generator.web.problems import retry

SAID = "said"
PAGES = (
    ("", "Tonight"),
    ("/nights", "Nights"),
    ("/posters", "Posters"),
    ("/models", "Models"),
    ("/withdrawals", "Withdrawn"),
    ("/dead-letters", "Dead letters"),
    ("/erasures", "Erasures"),
    ("/settings", "Settings"),
    ("/audit", "Audit log"),
)


class Renderer:
    """Makes pages."""

    def __init__(self, context: WebContext) -> None:
        self._context = context
        self._templates = Environment(
            loader=PackageLoader("generator.web.console"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
        )
        self._templates.filters |= {"number": _number, "when": _when, "seconds": _seconds}
        self._templates.globals |= {"base": CONSOLE, "pages": PAGES, "columns": COLUMNS, "getattr": getattr}

    def __call__(self, request: Request, template: str, code: int = 200, **values: Any) -> Response:
        """A page for whoever is signed in."""
        caller: Caller | None = getattr(request.state, "caller", None)
        said = self._context.signer.open(SAID, request.query_params.get(SAID, ""))
        return self._page(
            template,
            code,
            path=request.url.path.removeprefix(CONSOLE),
            caller=caller,
            may_change=caller is not None and caller.may("operate"),
            csrf=self._context.access.form_token(caller) if caller else "",
            said=said.decode() if said else None,
            **values,
        )

    def problem(self, status: int, words: str, request_id: str) -> Response:
        """A problem as a page."""
        page = self._page(
            "problem",
            status,
            path="",
            caller=None,
            may_change=False,
            csrf="",
            said=None,
            number=status,
            words=words,
            request_id=request_id,
        )
        page.headers.update(retry(status))
        return page

    def _page(self, template: str, code: int, **values: Any) -> Response:
        return HTMLResponse(self._templates.get_template(f"{template}.html.j2").render(**values), code)


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _when(value: datetime | None) -> str:
    return f"{value:%Y-%m-%d %H:%M}" if value else "–"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
