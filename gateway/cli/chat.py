"""`chasqui chat`: a streaming conversation in the terminal, through the official SDK like any other client."""

import os
import sys
from typing import TYPE_CHECKING

import rich_click as click

from gateway.cli.common import stop

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletionMessageParam


@click.command("chat")
@click.argument("message", required=False)
@click.option("--model", default="guide", show_default=True)
@click.option("--system", help="A system message for the whole conversation.")
@click.option(
    "--base-url",
    envvar="CHASQUI_BASE_URL",
    help="[default: http://127.0.0.1:8000/v1, with CHASQUI_PORT if that is set]",
)
@click.option("--key", envvar=["CHASQUI_API_KEY", "OPENAI_API_KEY"], help="Your key; better through CHASQUI_API_KEY.")
@click.option("--max-tokens", type=int, default=512, show_default=True)
def command(
    message: str | None, model: str, system: str | None, base_url: str | None, key: str | None, max_tokens: int
) -> None:
    """Talk to a model. With MESSAGE: one answer. Without: a conversation, ended by an empty line or Ctrl-D."""
    if not key:
        stop("no key: set CHASQUI_API_KEY, or create one with `chasqui keys create --name me`")
    import openai

    base_url = base_url or f"http://127.0.0.1:{os.environ.get('CHASQUI_PORT') or 8000}/v1"
    client = openai.OpenAI(base_url=base_url, api_key=key)
    turns: list[ChatCompletionMessageParam] = [{"role": "system", "content": system}] if system else []
    try:
        while question := (message if message is not None else _ask()):
            turns.append({"role": "user", "content": question})
            turns.append({"role": "assistant", "content": _stream(client, model, turns, max_tokens)})
            if message is not None:
                return
    except openai.APIConnectionError:
        stop(f"nothing answers at {base_url}; start it with `make run` or `chasqui serve`")
    except openai.APIError as exc:
        stop(f"\n{getattr(exc, 'message', None) or exc}")


def _ask() -> str:
    try:
        return input("you> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _stream(client: "openai.OpenAI", model: str, turns: "list[ChatCompletionMessageParam]", max_tokens: int) -> str:
    """Print an answer as it comes; Ctrl-C ends the answer, not the conversation."""
    text = ""
    stream = client.chat.completions.create(model=model, messages=turns, max_tokens=max_tokens, stream=True)
    with stream:
        try:
            for chunk in stream:
                piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
                text += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stdout.write(" …")
    sys.stdout.write("\n")
    return text
