"""Render conversations with a tokenizer's chat template. Every failure of a template is an error message of one line.

transformers runs templates in Jinja's sandbox. `bounded` adds limits of memory and time, which this sandbox lacks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calibration.bounded import MEMORY, SECONDS, bounded
from calibration.errors import CalibrationError

Message = Mapping[str, Any]
MAX_CHARACTERS = 1_000_000  # of a rendered conversation, and GROWTH times its messages
GROWTH = 20


def render(tokenizer: Any, messages: Sequence[Message], where: str, **options: Any) -> str:
    """The conversation as text, as the template renders it.

    Raises CalibrationError, beginning with `where`, if the template fails in any way or renders too long a text.
    """
    rows = [dict(message) for message in messages]
    text = guarded(lambda: tokenizer.apply_chat_template(rows, **(options | {"tokenize": False})), where, rows)
    limit = MAX_CHARACTERS + GROWTH * len(str(rows))
    if len(text) > limit:
        raise CalibrationError(
            f"{where}: the chat template renders {len(text):,} characters, above the limit of {limit:,} for this "
            "conversation; correct the template"
        )
    return str(text)


def render_all(tokenizer: Any, messages: Sequence[Message], where: str, **options: Any) -> str:
    """A whole conversation as text. Raises CalibrationError as `render` does, and also if the text is empty."""
    text = render(tokenizer, messages, where, **options)
    if not text.strip():
        raise CalibrationError(
            f"{where}: the chat template renders no text from this conversation; correct the template"
        )
    return text


def guarded(call: Callable[[], Any], where: str, rows: Sequence[Message], memory: int = MEMORY) -> Any:
    """Run `call`, which uses a chat template, within limits of memory and time, and return its value.

    Raises CalibrationError, beginning with `where`, for every exception: the template is foreign code.
    """
    from jinja2 import TemplateError

    try:
        with bounded(memory, SECONDS):
            return call()
    except MemoryError:
        reason, cure = "needs too much memory", "correct the template"
    except TimeoutError as error:
        reason, cure = str(error), "correct the template"
    except TemplateError as error:
        reason, cure = str(error) or type(error).__name__, "change the row"
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        cure = "write `arguments` as an object" if text_arguments(rows) else "change the row, or correct the template"
    raise CalibrationError(f"{where}: the chat template rejects this conversation ({reason}); {cure}")


def text_arguments(rows: Sequence[Message]) -> bool:
    """Whether a tool call has its arguments as JSON text, as APIs log them, and not as an object."""
    calls = [call for row in rows if isinstance(row.get("tool_calls"), list) for call in row["tool_calls"]]
    functions = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
    return any(isinstance(one, Mapping) and isinstance(one.get("arguments"), str) for one in functions)
