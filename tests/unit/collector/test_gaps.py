"""The sequence window against a model that remembers everything."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.collector.core_library import WINDOW, Gaps

NEW, DUPLICATE, LATE = 0, 1, 2


@dataclass
class Model:
    """What the window must do, without a window: sets of all numbers ever."""

    next: int = 0
    base: int = 0
    seen: set[int] = field(default_factory=set)
    late: set[int] = field(default_factory=set)
    lost: int = 0

    def missing(self) -> int:
        return sum(number not in self.seen for number in range(self.base, self.next))

    def _settle(self, upto: int) -> None:
        self.lost += sum(number not in self.seen for number in range(self.base, upto))
        self.base = max(self.base, upto)

    def expect(self, upto: int) -> None:
        if upto > self.next:
            self._settle(max(self.base, upto - WINDOW))
            self.next = upto

    def settle(self, upto: int) -> None:
        self._settle(max(self.base, min(upto, self.next)))

    def arrive(self, number: int) -> int:
        if number >= self.next:
            self.expect(number + 1)
        elif self.next - number > WINDOW:
            return LATE
        elif number in self.seen or number in self.late:
            return DUPLICATE
        elif number < self.base:
            self.late.add(number)
            return LATE
        self.seen.add(number)
        if self.missing() == 0:
            self.base = self.next
        return NEW


steps = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(-80, 80)),
        st.tuples(
            st.just("arrive"), st.sampled_from([1, 1, 1, 2, -1, -2, 5000, -5000, WINDOW - 1, WINDOW, WINDOW + 1, -WINDOW, 20000])
        ),
        st.tuples(st.just("run"), st.integers(1, 200)),
        st.tuples(st.just("expect"), st.integers(-5, 300)),
        st.tuples(st.just("settle"), st.integers(-100, 10)),
    ),
    max_size=60,
)


def _check(gaps: Gaps, model: Model, lost: int) -> None:
    assert (gaps.next, lost) == (model.next, model.lost)
    assert gaps.missing == model.missing()


@settings(max_examples=150, deadline=None)
@given(steps, st.sampled_from([0, 2**32 - 100, 2**33 - 9000]))
def test_agrees_with_the_model(sequence: list[tuple[str, int]], start: int) -> None:
    gaps, model, lost = Gaps(next=start, base=start), Model(next=start, base=start), 0
    for index in range(WINDOW // 64):
        gaps.bits[index] = 2**64 - 1
    model.seen.update(range(max(0, start - WINDOW), start))
    for kind, offset in sequence:
        target = gaps.next + offset
        if kind == "arrive" and target - 1 >= 0:
            verdict, newly = gaps.arrive((target - 1) & 0xFFFFFFFF)
            lost += newly
            assert verdict == model.arrive(target - 1)
        elif kind == "run":
            for number in range(gaps.next, gaps.next + offset):
                assert gaps.arrive(number & 0xFFFFFFFF) == (NEW, 0) or gaps.missing
                assert model.arrive(number) == NEW
            lost = model.lost
        elif kind == "expect":
            lost += gaps.expect(max(0, target))
            model.expect(max(0, target))
        elif kind == "settle":
            lost += gaps.settle(max(0, target))
            model.settle(max(0, target))
        _check(gaps, model, lost)


def test_reordering_within_the_window_loses_nothing() -> None:
    gaps = Gaps()
    order = [number ^ 4095 for number in range(3 * WINDOW)]
    assert all(gaps.arrive(number) == (NEW, 0) for number in order)
    assert (gaps.next, gaps.missing) == (3 * WINDOW, 0)


def test_a_missing_head_is_a_gap() -> None:
    gaps = Gaps()
    assert gaps.arrive(5) == (NEW, 0)
    assert gaps.missing == 5
    assert gaps.settle(6) == 5


def test_a_number_from_before_the_first_is_late() -> None:
    gaps = Gaps()
    gaps.arrive(0)
    assert gaps.arrive(2**32 - 1) == (LATE, 0)


def test_a_stream_may_be_old_when_it_is_met() -> None:
    gaps = Gaps()
    assert gaps.arrive(2**32 - 1) == (NEW, 2**32 - WINDOW)
    assert gaps.arrive(0) == (NEW, 1)  # the oldest of the window falls out of it
    assert gaps.next == 2**32 + 1


def test_a_gap_of_half_the_number_space_is_counted_at_once() -> None:
    gaps = Gaps()
    assert gaps.arrive(2**31 - 1) == (NEW, 2**31 - WINDOW)
    assert gaps.missing == WINDOW - 1
