"""The live figures of chapter 17, over the whole range of their controls, against closed forms."""
import pytest

from course_lib.figures.scaling_out import memory_explorer, ring_figure, timeline_explorer

SIZES = [40, 16_000, *[1_600, 640_000] * 10, 1_600, 1_254_400]
READY = [.014 + .03 * (i + 1) / len(SIZES) for i in range(len(SIZES))]


def values_of(control): return [value[1] if isinstance(value, tuple) else value for value in control.options]


@pytest.fixture(scope="module")
def timeline(): return timeline_explorer(.014, READY, SIZES)


@pytest.mark.parametrize("name", ["ranks", "bucket_mb", "latency_us", "gb_per_s"])
def test_each_control_of_the_timeline_moves_what_it_should(timeline, name):
    timeline.reset()
    efficiencies, said = [], set()
    for value in values_of(timeline.controls[name]):
        timeline.set(**{name: value})
        found = timeline.state
        assert found[name] == value and 0 < found["efficiency"] <= 1
        assert found["compute_ms"] == pytest.approx(1e3 * READY[-1])
        assert found["step_ms"] == pytest.approx(found["compute_ms"] + found["waiting_ms"])
        assert found["images_per_s"] == pytest.approx(1e3 * 128 * found["ranks"] / found["step_ms"])
        # it cannot be over before all is sent
        n = found["ranks"]
        latencies = found["n_messages"] * found["latency_us"] * 1e-6
        sent = 2 * (n - 1) * (latencies + sum(SIZES) / n / found["gb_per_s"] / 1e9)
        assert found["step_ms"] >= 1e3 * (READY[0] + sent) - 1e-6
        efficiencies.append(found["efficiency"])
        said.add(timeline.words(found))
    assert len(said) == len(efficiencies)       # also where the change is smaller than what the words round to
    if name in ("ranks", "latency_us"): assert efficiencies == sorted(efficiencies, reverse=True)
    if name == "gb_per_s": assert efficiencies == sorted(efficiencies)


def test_one_bucket_is_sent_after_backward_and_small_ones_before(timeline):
    timeline.reset()
    assert timeline.state["bucket_mb"] == .1                         # not at the answer
    timeline.set(bucket_mb=2)
    first = timeline.state
    timeline.set(bucket_mb=1000)
    alone = 1e3 * 2 * 31 * (50e-6 + sum(SIZES) / 32 / 1.25e9)
    assert timeline.state["n_messages"] == 1 and timeline.state["waiting_ms"] == pytest.approx(alone)
    assert first["n_messages"] > 1 and first["efficiency"] > timeline.state["efficiency"]


@pytest.mark.parametrize("name", ["billions", "ranks"])
def test_the_bars_of_memory_are_zeros_arithmetic(name):
    memory = memory_explorer()
    for value in values_of(memory.controls[name]):
        memory.set(**{name: value})
        psi, n = memory.state["billions"], memory.state["ranks"]
        expected = [16 * psi, 4 * psi + 12 * psi / n, 2 * psi + 14 * psi / n, 16 * psi / n]
        assert memory.state["gigabytes"] == pytest.approx(expected)
        fits = [stage for stage, gigabytes in enumerate(expected) if gigabytes <= 80]
        assert memory.state["fits"] == (fits[0] if fits else None)


def test_the_rings_numbers_and_arrows():
    start = [[1] * 3, [10] * 3, [100] * 3]
    fig = ring_figure([([], start), ([(0, 0), (1, 1), (2, 2)], [[1, 1, 101], [11, 10, 10], [100, 110, 100]])])
    assert [[text.get_text() for text in ax.texts if text.get_text()] for ax in fig.axes] == [
        ["1"] * 3 + ["10"] * 3 + ["100"] * 3, ["1", "1", "101", "11", "10", "10", "100", "110", "100"]]
    arrows = [[text for text in ax.texts if not text.get_text()] for ax in fig.axes]
    assert [len(found) for found in arrows] == [0, 4]                # from the last rank to the first in two pieces
