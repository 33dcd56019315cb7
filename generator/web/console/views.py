"""The console's pages, and where each is."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, Query, Request
from starlette.responses import Response

from generator.web import audit
from generator.web.console import taken_back
from generator.web.console.changes import add_changes
from generator.web.console.nights import Nights
from generator.web.console.posters import Posters
from generator.web.console.registry import Models
from generator.web.console.render import Renderer
from generator.web.context import WebContext
from generator.web.guard import CONSOLE
from generator.web.health import WebHealth
from generator.web.problems import NotFound
from schemas.errors import InputError
from schemas.events import CONSUMED
from schemas.settings import Settings

PAGE = 24
"""Rows of a list's page."""
LETTERS_PAGE = 50
LONGEST_VALUE = 20_000
"""Characters of a dead letter that are shown."""
STYLE = (Path(__file__).parent / "style.css").read_bytes()

T = TypeVar("T")
After = Annotated[str | None, Query(max_length=1_200)]
Number = Annotated[int | None, Query(ge=-(2**62), le=2**62)]
Identity = Annotated[str, Query(max_length=256)]


class Console:
    """All pages that a browser sees."""

    def __init__(self, context: WebContext) -> None:
        self._context = context
        self.render = Renderer(context)
        self.problem = self.render.problem
        # No script at all; pictures from the bucket, and from catalogues that are on the web.
        self.policy = (
            f"default-src 'none'; style-src 'self'; img-src 'self' {context.addresses.origin} https:; form-action 'self'; "
            "frame-ancestors 'none'; base-uri 'none'"
        )

    def add(self, app: FastAPI, health: WebHealth) -> None:
        """Add the pages to an application."""
        router = APIRouter(prefix=CONSOLE, include_in_schema=False)
        nights = Nights(self._context.engine, self._context.settings.schedule)
        posters = Posters(self._context.engine, self._context.addresses)
        models = Models(self._context.settings, self._context.engine)
        self._add_nights(router, nights, health)
        self._add_posters(router, posters)
        self._add_models(router, models)
        self._add_letters(router)
        self._add_lists(router)
        add_changes(router, self._context, self.render, models)
        app.include_router(router)

        @app.get(f"{CONSOLE}/style.css", include_in_schema=False)
        def style() -> Response:
            return Response(STYLE, media_type="text/css; charset=utf-8")

    def _add_nights(self, router: APIRouter, nights: Nights, health: WebHealth) -> None:
        render, context = self.render, self._context

        @router.get("")
        def tonight(request: Request) -> Response:
            late, words = nights.lateness()
            current = context.reader.posters.current
            return render(
                request,
                "tonight",
                night=nights.latest(),
                late=late,
                due=words,
                moments=nights.moments(),
                problems=health.problems(),
                current=current,
            )

        @router.get("/nights")
        def list_nights(request: Request, after: After = None) -> Response:
            runs = nights.page(_date_place(after), PAGE + 1)
            last = runs[PAGE - 1] if len(runs) > PAGE else None
            return render(
                request,
                "nights",
                runs=runs[:PAGE],
                next=_link("nights", after=f"{last.logical_date}/{last.run_id}") if last else None,
            )

        @router.get("/nights/{run_id}")
        def one_night(request: Request, run_id: str) -> Response:
            night = _found(nights.get(run_id), f"no run {run_id}")
            return render(request, "night", night=night)

        @router.get("/nights/{run_id}/tasks")
        def tasks(request: Request, run_id: str, status: Identity = "failed", after: After = None) -> Response:
            rows = nights.tasks(run_id, status, _pair(after), PAGE + 1)
            last = rows[PAGE - 1] if len(rows) > PAGE else None
            more = f"{last.user_id}\x1f{last.item_id}" if last else None
            where = f"nights/{run_id}/tasks"
            return render(
                request,
                "tasks",
                run_id=run_id,
                status=status,
                tasks=rows[:PAGE],
                next=_link(where, status=status, after=more) if more else None,
            )

    def _add_posters(self, router: APIRouter, posters: Posters) -> None:
        render = self.render

        @router.get("/posters")
        def list_posters(request: Request, user: Identity = "", item: Identity = "", after: After = None) -> Response:
            if user:
                cards = posters.of_user(user, _pair(after), PAGE + 1)
            elif item:
                cards = posters.of_item(item, after, PAGE + 1)
            else:
                cards = posters.sample(after, PAGE + 1)
            last = cards[PAGE - 1].poster if len(cards) > PAGE else None
            place = (f"{last.item_id}\x1f{last.poster_id}" if user else last.poster_id) if last else None
            return render(
                request,
                "posters",
                cards=cards[:PAGE],
                user=user,
                item=item,
                next=_link("posters", user=user, item=item, after=place) if place else None,
            )

        @router.get("/posters/{poster_id}")
        def one_poster(request: Request, poster_id: str) -> Response:
            return render(request, "poster", detail=_found(posters.get(poster_id), f"no poster {poster_id}"))

    def _add_models(self, router: APIRouter, models: Models) -> None:
        render = self.render

        @router.get("/models")
        def list_models(request: Request, after: Number = None) -> Response:
            rows = models.page(after, PAGE + 1)
            last = rows[PAGE - 1][0] if len(rows) > PAGE else None
            return render(
                request,
                "models",
                rows=rows[:PAGE],
                clicks=models.clicks(),
                next=_link("models", after=str(last.number)) if last else None,
            )

        @router.get("/models/{name}")
        def one_model(request: Request, name: str) -> Response:
            return render(request, "model", page=_found(models.get(name), f"no model version {name}"))

    def _add_letters(self, router: APIRouter) -> None:
        render, outside, settings = self.render, self._context.outside, self._context.settings

        @router.get("/dead-letters")
        def letters(request: Request, topic: Identity = "", reason: Identity = "", after: After = None) -> Response:
            found = outside.list_letters(settings, topic or None, reason or None, after or None, LETTERS_PAGE + 1)
            last = found.letters[LETTERS_PAGE - 1] if len(found.letters) > LETTERS_PAGE else None
            return render(
                request,
                "letters",
                letters=found.letters[:LETTERS_PAGE],
                count=min(found.count, outside.most_counted),
                more_than=found.count > outside.most_counted,
                behind=found.behind,
                topics=list(CONSUMED),
                topic=topic,
                reason=reason,
                next=_link("dead-letters", topic=topic, reason=reason, after=last.place) if last else None,
            )

        @router.get("/dead-letters/{place:path}")
        def letter(request: Request, place: str) -> Response:
            try:
                found = outside.find_letter(settings, place)
            except InputError as error:
                raise NotFound(str(error)) from error
            return render(request, "letter", letter=found, key=_readable(found.key), value=_readable(found.value))

    def _add_lists(self, router: APIRouter) -> None:
        render, context = self.render, self._context

        @router.get("/withdrawals")
        def withdrawals(request: Request, show: Identity = "", after: Number = None) -> Response:
            rows = taken_back.read_withdrawals(context.engine, after, PAGE + 1, only_open=show != "all")
            last = rows[PAGE - 1] if len(rows) > PAGE else None
            return render(
                request,
                "withdrawals",
                rows=rows[:PAGE],
                show=show,
                next=_link("withdrawals", show=show, after=str(last.withdrawal_id)) if last else None,
            )

        @router.get("/erasures")
        def erasures(request: Request, user: Identity = "", after: After = None) -> Response:
            rows = taken_back.read_erasures(context.engine, user or None, after, PAGE + 1)
            last = rows[PAGE - 1] if len(rows) > PAGE else None
            return render(
                request,
                "erasures",
                rows=rows[:PAGE],
                user=user,
                next=_link("erasures", after=last.user_id) if last else None,
            )

        @router.get("/settings")
        def settings_page(request: Request) -> Response:
            return render(request, "settings", groups=_groups(context.settings))

        @router.get("/audit")
        def audit_page(request: Request, after: Number = None) -> Response:
            rows = audit.read_page(context.engine, after, PAGE + 1)
            last = rows[PAGE - 1] if len(rows) > PAGE else None
            return render(
                request,
                "audit",
                rows=rows[:PAGE],
                next=_link("audit", after=str(last.audit_id)) if last else None,
            )


def _found(value: T | None, words: str) -> T:
    if value is None:
        raise NotFound(words)
    return value


def _link(page: str, **query: str | None) -> str:
    return f"{CONSOLE}/{page}?{urlencode({name: value for name, value in query.items() if value})}"


def _pair(after: str | None) -> tuple[str, str] | None:
    if not after:
        return None
    first, mark, second = after.partition("\x1f")
    if not mark:
        raise InputError("after: is no place in this list")
    return first, second


def _date_place(after: str | None) -> tuple[date, str] | None:
    if not after:
        return None
    day, _, run_id = after.partition("/")
    try:
        return date.fromisoformat(day), run_id
    except ValueError:
        raise InputError("after: is no place in this list") from None


def _readable(content: bytes | None) -> str:
    if content is None:
        return "(null)"
    text = content.decode("utf-8", "backslashreplace")
    return text[:LONGEST_VALUE] + ("…" if len(text) > LONGEST_VALUE else "")


def _groups(settings: Settings) -> dict[str, list[tuple[str, str, str]]]:
    """Settings by group: name, value (secrets masked) and what it means."""
    values = settings.model_dump(mode="json")
    groups: dict[str, list[tuple[str, str, str]]] = {"": []}
    for name, value in values.items():
        group = getattr(settings, name)
        fields: Any = getattr(type(group), "model_fields", None)
        if fields is None:
            groups[""].append((name, _value(value), type(settings).model_fields[name].description or ""))
            continue
        groups[name] = [(key, _value(one), fields[key].description or "") for key, one in value.items()]
    return groups


def _value(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
