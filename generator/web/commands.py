"""Command `pigeon serve`; registered by generator/cli.py, which gives it the consumers' functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from generator.web.outside import Outside


def register(app: typer.Typer, models: typer.Typer, outside: Callable[[], Outside]) -> None:
    """Add the command to `pigeon`."""

    @app.command("serve")
    def serve(
        login_link: Annotated[
            bool,
            typer.Option("--login-link", help="Print an address that signs in to the console, once, as an operator."),
        ] = False,
        new_key: Annotated[bool, typer.Option("--new-key", help="Print a new signing key and end.")] = False,
        new_token: Annotated[
            str | None,
            typer.Option("--new-token", metavar="NAME", help="Print a new token's entry of web.tokens and end."),
        ] = None,
        roles: Annotated[
            str, typer.Option("--roles", help="Of --new-token: recommend, read, operate, by commas.")
        ] = "recommend",
    ) -> None:
        """Answer recommenders over HTTP and show the operators' console, until stopped."""
        from schemas.settings import load_settings

        if new_key:
            typer.echo(f"PIGEON_WEB__SIGNING_KEY={_draw()}")
            return
        if new_token is not None:
            typer.echo(token_entry(new_token, roles))
            return
        from generator.web.server import serve as answer
        from schemas.runtime import logs

        settings = load_settings()
        logs.configure(settings)
        if received := answer(settings, outside(), typer.echo, link=login_link):
            raise typer.Exit(128 + received[0])


def token_entry(name: str, roles: str) -> str:
    """A new token as an entry of `web.tokens`, in TOML.

    Raises:
        InputError: name or roles are none.
    """
    from pydantic import SecretStr, ValidationError

    from schemas.errors import InputError
    from schemas.settings_web import ApiToken

    wanted = tuple(part.strip() for part in roles.split(",") if part.strip())
    secret = _draw()
    try:
        made = ApiToken.model_validate({"name": name, "token": SecretStr(secret), "roles": wanted})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--new-token" if first["loc"][0] == "name" else "--roles"
        raise InputError(f"{option}: {first['msg']}") from None
    words = ", ".join(f'"{role}"' for role in made.roles)
    return f'[[web.tokens]]\nname = "{made.name}"\ntoken = "{secret}"\nroles = [{words}]'


def _draw() -> str:
    import secrets

    return secrets.token_urlsafe(32)
