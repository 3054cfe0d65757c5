"""What makes the engine of transformers fast changes no answer: packed weights, slots written in place, fewer wakes."""

import asyncio
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from service.serving.engines.outbox import Outbox
from service.serving.engines.packed import PackedLinear, pack
from service.serving.engines.slots import Place, Slots
from tests.serving.tiny import tiny_model

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_layers_give_the_same_products(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40, bias=bias, dtype=dtype), nn.ReLU())
    x = torch.randn(3, 5, 24, dtype=dtype)
    with torch.inference_mode():
        expected = model(x)
        pack(model)
        assert isinstance(model[0], PackedLinear)
        got = model(x)
    assert got.dtype == dtype and got.shape == expected.shape
    assert torch.allclose(got, expected, atol=1e-5 if dtype == torch.float32 else 1e-2)
    assert list(model.parameters()) == [], "the row-major weights are gone"


def test_a_kind_that_cannot_be_packed_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64))
    pack(model)
    assert type(model[0]) is nn.Linear


def test_a_whole_model_says_the_same_packed() -> None:
    model, ids = tiny_model(), torch.arange(20)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        pack(model)
        assert (model(ids).logits - expected).abs().max() < 1e-4


@dataclass(eq=False)
class Tenant:
    """A row, and what its slot is to hold."""

    place: Place | None = None
    length: int = 0
    held: torch.Tensor = field(default_factory=lambda: torch.zeros(2, 0, 1, 3))


def grown(slots: Slots, tenant: Tenant, by: int) -> None:
    """So many tokens more, as a pass writes them."""
    end = tenant.length + by
    slots.take(tenant, end)
    assert tenant.place is not None
    new = torch.randn(2, by, 1, 3)
    for layer in (0, 1):
        buffer = slots.buffer(layer, tenant.place.columns, new, tenant.place.number + 1)
        buffer[:, tenant.place.number, tenant.length : end] = new + layer
    tenant.held, tenant.length = torch.cat((tenant.held, new), dim=1), end


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["come", "grow", "leave"]), st.integers(0, 9), st.integers(1, 150)), max_size=40)
)
def test_a_slot_holds_what_its_row_has_whoever_comes_and_goes(changes: list[tuple[str, int, int]]) -> None:
    slots, tenants = Slots(), list[Tenant]()
    for change, which, by in changes:
        if change == "come":
            tenants.append(Tenant())
            grown(slots, tenants[-1], by)
        elif tenants and change == "grow":
            grown(slots, tenants[which % len(tenants)], by)
        elif tenants:
            slots.leave(tenants.pop(which % len(tenants)))
        taken: dict[int, list[int]] = {}
        for tenant in tenants:
            assert tenant.place is not None and tenant.place.columns >= tenant.length
            taken.setdefault(tenant.place.columns, []).append(tenant.place.number)
            for layer, state in slots.states(tenant).items():
                assert torch.equal(state, tenant.held + layer)
        for numbers in taken.values():
            assert sorted(numbers) == list(range(len(numbers))), "no gap"
        assert {columns for _, columns in slots._buffers} == set(taken), "who left has left no memory"
        for (_, columns), buffer in slots._buffers.items():
            left = buffer.clone()
            for tenant in tenants:
                if tenant.place is not None and tenant.place.columns == columns:
                    left[:, tenant.place.number, : tenant.length] = 0.0
            assert not left.any(), "what nobody has is 0"
            assert buffer.shape[1] <= 4 * len(taken[columns])


def test_what_is_not_finite_goes_with_its_row() -> None:
    slots, bad, good = Slots(), Tenant(), Tenant()
    for tenant in (bad, good):
        grown(slots, tenant, 3)
    slots.buffer(0, 64, bad.held, 2)[:, 0, :3] = float("nan")
    slots.leave(bad)
    assert good.place == Place(columns=64, number=0)
    assert torch.isfinite(slots.buffer(0, 64, good.held, 2)).all()


def test_a_row_begins_with_what_another_has() -> None:
    slots, old, new = Slots(), Tenant(), Tenant()
    grown(slots, old, 70)
    slots.take(new, 80)
    slots.begin(new, slots.states(old), 66)
    grown(slots, old, 90)
    assert new.length == 66
    assert torch.equal(slots.states(new)[1], old.held[:, :66] + 1)


def test_many_tokens_wake_the_loop_once() -> None:
    async def taken() -> tuple[list[int], int]:
        loop = asyncio.get_running_loop()
        outbox, queues, wakes = Outbox(loop), [asyncio.Queue[int]() for _ in range(3)], 0
        call = loop.call_soon_threadsafe

        def counted(*args: object) -> object:
            nonlocal wakes
            wakes += 1
            return call(*args)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign,assignment]
        for burst in (range(30), range(30, 36)):
            for item in burst:
                outbox.put(queues[item % 3], item)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return [queue.get_nowait() for queue in queues for _ in range(queue.qsize())], wakes

    items, wakes = asyncio.run(taken())
    assert items == [*range(0, 36, 3), *range(1, 36, 3), *range(2, 36, 3)] and wakes == 2


def test_nothing_is_lost_between_a_thread_and_the_loop() -> None:
    async def taken() -> list[int]:
        loop = asyncio.get_running_loop()
        outbox, queue = Outbox(loop), asyncio.Queue[int]()

        def put() -> None:
            for item in range(2000):
                outbox.put(queue, item)

        putting = loop.run_in_executor(None, put)
        found = [await asyncio.wait_for(queue.get(), 60) for _ in range(2000)]
        await putting
        return found

    assert asyncio.run(taken()) == list(range(2000))


def test_a_closed_loop_takes_nothing() -> None:
    loop = asyncio.new_event_loop()
    outbox = Outbox(loop)
    outbox.put(asyncio.Queue(), 1)
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        outbox.put(asyncio.Queue(), 2)
