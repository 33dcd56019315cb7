"""What can be changed at the console: by forms of our own pages, with a reason, and audited."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_args
from urllib.parse import parse_qsl, quote, urlsplit

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from generator.nightly import withdraw
from generator.web.access import COOKIE, Caller
from generator.web.audit import Change, audited
from generator.web.console.registry import Models
from generator.web.console.render import SAID, Renderer
from generator.web.console.taken_back import erasure_of
from generator.web.context import WebContext
from generator.web.guard import CONSOLE
from schemas.errors import InputError, Refused, ServerUnavailable
from schemas.manifest_withdrawn import WithdrawnKind

MOST_LETTERS = 1_000
Form = Mapping[str, str]


class NotOurForm(Refused):
    """A form that another site has sent, or that is too old."""


def add_changes(router: APIRouter, context: WebContext, render: Renderer, models: Models) -> None:
    """Add the pages that change something, and signing in and out."""
    desk = ChangeDesk(context, models)
    works: dict[str, Callable[[Form, Caller], tuple[str, str, Callable[[], str]]]] = {
        "/withdrawals": desk.withdraw,
        "/withdrawals/lift": desk.lift,
        "/nights/rollback": desk.roll_back_night,
        "/models/change": desk.change_model,
        "/dead-letters/replay": desk.replay,
        "/dead-letters/drop": desk.drop,
        "/erasures": desk.erase,
    }
    for path, work in works.items():
        router.post(path)(_form_page(context, path, work))
    _add_sign_in(router, context, render)


def _form_page(
    context: WebContext, path: str, work: Callable[[Form, Caller], tuple[str, str, Callable[[], str]]]
) -> Callable[[Request], Any]:
    async def page(request: Request) -> Response:
        form = await read_form(request)
        caller: Caller = request.state.caller
        _check_origin(context, request, form, caller)

        def run() -> str:
            subject, back, change = work(form, caller)
            asked = Change(caller.name, request.state.address, path.strip("/"), subject, form.get("reason", ""))
            said = audited(context.engine, asked, change)
            mark = "&" if "?" in back else "?"
            return f"{CONSOLE}{back}{mark}{SAID}={context.signer.sign(SAID, said[:900].encode())}"

        return RedirectResponse(await run_in_threadpool(run), 303)

    return page


async def read_form(request: Request) -> Form:
    """The fields of a form; the last one of a name.

    Raises:
        InputError: it is none.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise InputError("send a form: application/x-www-form-urlencoded")
    try:
        return dict(parse_qsl((await request.body()).decode(), keep_blank_values=True, max_num_fields=100))
    except ValueError as error:
        raise InputError(f"the form cannot be read: {error}") from None


def _check_origin(context: WebContext, request: Request, form: Form, caller: Caller) -> None:
    """A browser sends what any site tells it to, with our cookie: only our own forms count.

    Raises:
        NotOurForm: it is not.
    """
    if caller.by == "token":  # no browser adds an Authorization header by itself
        return
    own = {request.headers.get("host", ""), urlsplit(context.settings.web.public_url or "").netloc}
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc not in own:
        raise NotOurForm("this form was sent by another site; nothing was changed")
    if not context.access.is_own_form(caller, form.get("csrf", "")):
        raise NotOurForm("this form is not of your session; nothing was changed. Load the page again and repeat it")


class ChangeDesk:
    """Each method: what is changed, the page to go back to, and the work, which says what it did."""

    def __init__(self, context: WebContext, models: Models) -> None:
        self._context = context
        self._settings = context.settings
        self._models = models

    def withdraw(self, form: Form, caller: Caller) -> tuple[str, str, Callable[[], str]]:
        """Take back a poster, a picture, an item's or a user's posters."""
        kind, subject = self._subject(form, allowed=("poster", "picture", "item", "user"))
        reason = form.get("reason", "")
        return (
            f"{kind} {subject}",
            "/withdrawals",
            lambda: self._seen(withdraw.withdraw(self._settings, kind, subject, reason=reason, actor=caller.name)),
        )

    def lift(self, form: Form, caller: Caller) -> tuple[str, str, Callable[[], str]]:
        """Undo a withdrawal."""
        kind, subject = self._subject(form, allowed=get_args(WithdrawnKind))
        reason = form.get("reason", "")
        return (
            f"{kind} {subject}",
            "/withdrawals",
            lambda: self._seen(withdraw.lift(self._settings, kind, subject, reason=reason, actor=caller.name)),
        )

    def roll_back_night(self, form: Form, caller: Caller) -> tuple[str, str, Callable[[], str]]:
        """Lead readers back to the set before the newest."""
        reason = form.get("reason", "")
        return (
            "the newest night",
            "",
            lambda: self._seen(withdraw.rollback(self._settings, reason=reason, actor=caller.name)),
        )

    def change_model(self, form: Form, caller: Caller) -> tuple[str, str, Callable[[], str]]:
        """Promote, make canary, override or roll back a model."""
        move, name, reason = form.get("move", ""), form.get("version", ""), form.get("reason", "")
        try:
            hours = float(form.get("hours") or 168)
        except ValueError:
            raise InputError("hours: must be a number") from None
        if not 0 < hours <= 24 * 90:
            raise InputError("hours: must be more than 0 and at most 2160")
        back = f"/models/{quote(name, safe='')}" if name else "/models"
        return (
            f"{move} {name}".strip(),
            back,
            lambda: self._models.change(move, name, reason, caller.name, hours),
        )

    def replay(self, form: Form, caller: Caller) -> tuple[str, str, Callable[[], str]]:
        """Send dead letters to their topics again."""
        outside = self._context.outside
        return self._letters(form, "replayed", outside.read_letters, outside.replay_letters)

    def drop(self, form: Form, caller: Caller) -> tuple[str, str, Callable[[], str]]:
        """Set dead letters aside for good."""
        outside = self._context.outside
        return self._letters(form, "dropped", outside.open_letters, outside.drop_letters)

    def erase(self, form: Form, caller: Caller) -> tuple[str, str, Callable[[], str]]:
        """Send the event that erases a user."""
        user = form.get("user", "")
        if not user or user != form.get("again", ""):
            raise InputError("user: give the id twice, exactly alike: an erasure cannot be undone")

        def work() -> str:
            try:
                self._context.sender.send(erasure_of(user)).result(self._settings.web.feedback_seconds)
            except TimeoutError:
                raise ServerUnavailable("Kafka did not take the request in time; ask again") from None
            return (
                f"the erasure of {user} is requested: consumers delete rows within seconds, the scheduler's erasure job "
                "the rest; this page then shows the proof"
            )

        return f"user {user}", f"/erasures?user={quote(user, safe='')}", work

    def _letters(
        self, form: Form, done: str, take: Callable[..., Sequence[Any]], work: Callable[[Any, Sequence[Any]], int]
    ) -> tuple[str, str, Callable[[], str]]:
        topic, reason_code, place = form.get("topic", ""), form.get("code", ""), form.get("place", "")

        def run() -> str:
            if not (topic or reason_code or place):
                raise InputError("choose a topic or a reason: nothing was changed")
            letters = take(self._settings, topic or None, reason_code or None, MOST_LETTERS, place or None)
            if place and not letters:
                raise Refused(f"{place} is dealt with already, is a copy of one that is listed, is hidden or has gone")
            count = work(self._settings, letters)
            return f"{count} dead letter{'' if count == 1 else 's'} {done}"

        subject = place or f"topic {topic or 'any'}, reason {reason_code or 'any'}"
        return subject, "/dead-letters", run

    def _seen(self, said: str) -> str:
        """Have this server's own reader follow at once."""
        self._context.reader.posters.refresh()
        return said

    def _subject(self, form: Form, allowed: tuple[str, ...]) -> tuple[WithdrawnKind, str]:
        kind, subject = form.get("kind", ""), form.get("subject", "").strip()
        if kind not in allowed:
            raise InputError(f"kind: one of {', '.join(allowed)}")
        return cast(WithdrawnKind, kind), subject


def _add_sign_in(router: APIRouter, context: WebContext, render: Renderer) -> None:
    secure = (context.settings.web.public_url or "").startswith("https://")

    @router.get("/login")
    def login_page(request: Request, code: str = "") -> Response:
        return render(request, "login", link=code, wrong=False)

    @router.post("/login")
    async def login(request: Request) -> Response:
        form = await read_form(request)
        cookie = context.access.sign_in(form.get("token", "").strip())
        if cookie is None:
            return render(request, "login", 401, link="", wrong=True)
        answer = RedirectResponse(CONSOLE, 303)
        answer.set_cookie(
            COOKIE,
            cookie,
            max_age=int(3600 * context.settings.web.session_hours),
            httponly=True,
            secure=secure,
            samesite="lax",
        )
        return answer

    @router.post("/logout")
    async def logout(request: Request) -> Response:
        form = await read_form(request)
        _check_origin(context, request, form, request.state.caller)
        answer = RedirectResponse(f"{CONSOLE}/login", 303)
        answer.delete_cookie(COOKIE)
        return answer
