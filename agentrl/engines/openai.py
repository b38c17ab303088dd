"""Any model behind an OpenAI-compatible endpoint, as a policy: for evaluation and play, not for training.

Such an endpoint answers with text. Its actions carry no tokens, so nothing can be trained on them.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx

from agentrl.errors import ConfigError, ContextFull, EngineError
from agentrl.policy import Sampling
from agentrl.types import Action, Message, Observation, Turn

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0


@dataclass
class OpenAIPolicy:
    """A ``Policy`` over ``POST {base_url}/chat/completions``; leaving its async context closes connections.

    A request is sent again after an answer 408, 409, 429 or 5xx and after a failed connection, with pauses
    that double. A ``Retry-After`` header replaces the pause, up to ``LONGEST_PAUSE_S``.

    Args:
        base_url: URL up to and including the version, such as ``http://localhost:8000/v1``.
        model: the name under which the endpoint serves the model.
        api_key_env: environment variable that holds the API key; if it is not set, no key is sent.
        sampling: how tokens are drawn. ``top_k`` is sent only if it truncates, because it is not part of the
            original interface.
        timeout_s: maximum time to wait for one answer.
        retries: maximum number of times that one request is sent again.
        system: content of a system message that is sent first; if it is empty, none is sent.

    Raises:
        ConfigError: ``base_url`` is not an http(s) URL.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    sampling: Sampling = field(default_factory=Sampling)
    timeout_s: float = 120.0
    retries: int = 4
    system: str = ""
    _client: httpx.AsyncClient = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"base_url must begin with http:// or https://, but it is {self.base_url!r}; "
                "for example http://localhost:8000/v1"
            )
        key = os.environ.get(self.api_key_env, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(
            headers=headers, timeout=self.timeout_s, limits=httpx.Limits(max_connections=None)
        )

    async def __aenter__(self) -> OpenAIPolicy:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Return the model's next message as an action.

        Raises:
            ContextFull: the endpoint reports that the context is too long.
            ConfigError: the endpoint refuses the key, or does not know the model or the path.
            EngineError: neither the first request nor any of the ``retries`` got a usable answer.
        """
        body: dict[str, Any] = {  # JSON
            "model": self.model,
            "messages": self._messages(turns, observation),
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_tokens": self.sampling.max_tokens,
            "seed": seed & 0x7FFFFFFF,  # some servers hold it in 32 bits
        }
        if self.sampling.top_k > 0:
            body["top_k"] = self.sampling.top_k
        answer = await self._post(body)
        try:
            choice = answer["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (LookupError, TypeError) as problem:
            raise EngineError(
                f"{self._url} answered without choices[0].message.content: {str(answer)[:300]}"
            ) from problem
        return Action((text or "").strip(), clipped=reason == "length")

    @property
    def _url(self) -> str:
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def _messages(self, turns: Sequence[Turn], observation: Observation) -> list[dict[str, object]]:
        messages = [Message("system", self.system)] if self.system else []
        for turn in turns:
            messages += [*turn.observation.messages, Message("assistant", turn.action.text)]
        return [
            {"role": message.role, "content": _content(message)}
            for message in (*messages, *observation.messages)
        ]

    async def _post(self, body: Mapping[str, Any]) -> Any:
        problem = ""
        for attempt in range(self.retries + 1):
            pause_s = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
            try:
                answer = await self._client.post(self._url, json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if answer.is_success:
                    return _json(answer)
                problem = f"{answer.status_code} {answer.reason_phrase}: {answer.text[:300]}"
                if answer.status_code not in (408, 409, 429) and answer.status_code < 500:
                    raise self._refusal(answer.status_code, problem)
                pause_s = min(_retry_after_s(answer) or pause_s, LONGEST_PAUSE_S)
            if attempt < self.retries:
                await asyncio.sleep(pause_s)
        raise EngineError(f"{self._url} gave no answer in {self.retries + 1} attempts; the last: {problem}")

    def _refusal(self, status: int, problem: str) -> Exception:
        if status in (401, 403):
            return ConfigError(
                f"{self._url} refuses the key: {problem}. "
                f"Put a valid one into the environment variable {self.api_key_env}"
            )
        if status == 404:
            return ConfigError(
                f"{self._url} does not know the model {self.model!r} or the path: {problem}. "
                "Check model and base_url"
            )
        if "context" in problem and ("length" in problem or "long" in problem):
            return ContextFull(f"{self._url} has no room for this context: {problem}")
        return EngineError(f"{self._url} refuses the request: {problem}")


def _content(message: Message) -> object:
    """Return a message's content as the endpoint expects it: text, or text and images as data URLs."""
    if not message.images:
        return message.content
    images = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in message.images]
    return [
        {"type": "text", "text": message.content},
        *({"type": "image_url", "image_url": {"url": url}} for url in images),
    ]


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as problem:
        raise EngineError(
            f"{answer.url} answered with something that is not JSON: {answer.text[:200]!r}"
        ) from problem


def _retry_after_s(answer: httpx.Response) -> float | None:
    """Return how many seconds the answer asks to wait, if any; dates are ignored."""
    try:
        return float(answer.headers.get("Retry-After", ""))
    except ValueError:
        return None
