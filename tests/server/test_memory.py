"""Memory that is free goes back to the system once the server rests."""

from __future__ import annotations

import asyncio

import pytest

from dragoman_server import memory


@pytest.fixture
def returns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every return."""
    found: list[int] = []
    monkeypatch.setattr(memory, "REST_SECONDS", 0.01)
    monkeypatch.setattr(memory, "return_freed_memory", lambda: found.append(1))
    return found


def looked_after(ended: list[int], in_progress: list[int], seconds: float = 0.2) -> None:
    """For a while; the first of both is popped at each look, the last one stays."""

    def next_of(values: list[int]) -> int:
        return values.pop(0) if len(values) > 1 else values[0]

    async def run() -> None:
        duty = memory.return_when_at_rest(lambda: next_of(ended), lambda: next_of(in_progress))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(duty, seconds)

    asyncio.run(run())


def test_it_goes_back_once_after_calls(returns: list[int]) -> None:
    looked_after(ended=[0, 5, 5, 5], in_progress=[0])
    assert len(returns) == 1


def test_it_stays_while_there_are_calls(returns: list[int]) -> None:
    looked_after(ended=list(range(1000)), in_progress=[0])
    looked_after(ended=[0, 5], in_progress=[1])
    assert returns == []


def test_nothing_goes_back_where_nobody_has_called(returns: list[int]) -> None:
    looked_after(ended=[3], in_progress=[0])
    assert returns == []


def test_it_goes_back_again_after_more_calls(returns: list[int]) -> None:
    looked_after(ended=[0, 1, 1, 1, 2, 2, 2], in_progress=[0])
    assert len(returns) == 2
