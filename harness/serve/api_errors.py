"""Refusals in the form of the OpenAI API."""

from __future__ import annotations

from typing import Any

from harness.core.errors import HarnessError


class ApiError(Exception):
    """A request that is not answered, and why.

    Args:
        status: HTTP status.
        message: what is wrong and what to do.
        param: the field of the request it is about.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @classmethod
    def of(cls, error: HarnessError) -> ApiError:
        """A request that asks for what cannot be."""
        return cls(400, " ".join(part for part in (_sentence(error.problem), error.advice) if part))

    @property
    def kind(self) -> str:
        """The API's word for a family of errors."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def fault(error: BaseException) -> ApiError:
    """A mistake of this program."""
    return ApiError(500, f"This is a fault of the harness: {error!r:.300}. Please report it.", code="internal_error")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
