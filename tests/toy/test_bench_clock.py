import pytest
import torch

from src.toy import bench_clock
from src.toy.bench_clock import COUNTS, Clock

CPU = torch.device("cpu")


def test_the_clock_leaves_the_warm_up_out() -> None:
    clock = Clock(CPU, seconds=0.0, warm=2, least=3)
    clock.begin()
    for last in (False, False, False, False, True):
        clock.count(1, torch.tensor(10), unique=4, sequences=6)
        assert clock.lap() == last
    found = clock.result()
    assert [found[name] for name in ("steps", *COUNTS)] == [3, 3, 18, 30, 12]
    assert found["seconds"] > 0 and found["peak_memory_bytes"] > 2**20


def test_the_clock_goes_on_until_the_seconds_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("src.toy.bench_clock.time.monotonic", lambda: now)
    clock = Clock(CPU, seconds=5.0, warm=1, least=2)
    clock.begin()
    ended = []
    for _ in range(6):
        now += 2.0
        clock.count(1, 10)
        ended.append(clock.lap())
    # The first 2 s are warm-up; 6 s of steps are the first that are not below 5 s.
    assert ended == [False, False, False, True, True, True]


def test_a_step_has_a_fixed_time_and_one_for_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("src.toy.bench_clock.time.monotonic", lambda: now)

    def line(steps: list[tuple[int, float]]) -> list[float]:
        nonlocal now
        clock = Clock(CPU, seconds=0.0, warm=1, least=len(steps))
        clock.begin()
        for tokens, seconds in [(999, 60.0), *steps]:
            now += seconds
            clock.count(1, tokens)
            clock.lap()
        return list(clock.seconds_by_tokens().values())

    sizes = (600, 700, 800, 900, 1000, 1100, 650, 950)
    even = [(size, 0.05 + 0.0001 * size) for size in sizes]
    assert line(even) == pytest.approx([0.05, 0.0001])
    # A step that was held up counts in the mean alone.
    assert line([*even, (800, 0.13 + 0.9)]) == pytest.approx([0.05 + 0.9 / 9, 0.0001], rel=0.02)
    assert line([(size, 0.05) for size in sizes]) == pytest.approx([0.05, 0])
    falling = line([(size, 2 - 0.001 * size) for size in sizes])
    assert falling == pytest.approx([2 - 0.001 * sum(sizes) / len(sizes), 0]), "no token gives time back"
    steep = line([(size, 0.001 * size - 0.4) for size in sizes])
    assert steep[0] == pytest.approx(0, abs=1e-12) and steep[1] > 0
    assert line([(700, 0.05), (700, 0.07)]) == pytest.approx([0.06, 0])


def test_what_goes_into_a_network_is_counted_without_its_padding() -> None:
    class Network(torch.nn.Module):
        def forward(self, **inputs: torch.Tensor) -> None:
            pass

    network = Network()
    clock = Clock(CPU, seconds=0.0)
    clock.watch(network)
    ids = torch.zeros(2, 4, dtype=torch.long)
    network(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    assert {name: int(count) for name, count in clock.counts.items()} == {
        **{"items": 2, "sequences": 2, "raw_tokens": 6, "unique_tokens": 6}
    }
    network(input_ids=ids[:1], position_ids=torch.tensor([[0, 1, 2, 0]]))
    assert (int(clock.counts["items"]), int(clock.counts["raw_tokens"])) == (4, 10)


def test_a_matmul_is_timed_for_a_moment_and_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products get slower after the first twenty, and again in the first half of the seconds."""
    now, calls = 0.0, 0

    def mm(one: torch.Tensor, other: torch.Tensor) -> None:
        nonlocal now, calls
        calls += 1
        now += 0.002 if calls <= 20 else 0.003 if calls <= 20 + 32 else 0.004

    monkeypatch.setattr(bench_clock.torch, "mm", mm)
    monkeypatch.setattr(bench_clock.time, "perf_counter", lambda: now)
    monkeypatch.setattr(bench_clock, "SUSTAINED", {"cpu": 0.33})
    peak, sustained = bench_clock.matmul_rates(CPU)
    assert (peak, sustained) == pytest.approx((2 * 1024**3 / 0.002, 2 * 1024**3 / 0.004))
