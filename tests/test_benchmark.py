"""Benchmark: counts against hand arithmetic, order and statistics with a fake clock, records."""

import copy
import json
import subprocess
import sys
from itertools import product
from operator import itemgetter

import pytest
import torch
from torch import nn

from ssl_lightning import Inputs, kept_groups, prune_like_
from ssl_lightning.backbones import create_backbone
from ssl_lightning.compaction.equality import tensors_of
from ssl_lightning.measure import (
    BenchmarkResult,
    Fastest,
    Machine,
    ModelSize,
    Run,
    Timing,
    benchmark,
    count_macs,
    interleave,
    latency,
    num_bytes,
    num_parameters,
)
from ssl_lightning.measure import engines as engines_module
from ssl_lightning.measure.csr import CsrLinear, with_csr_layers
from ssl_lightning.measure.engine import Engine
from ssl_lightning.measure.turns import MOST_CALLS, SETTLING, Turns, take_turns

QUICK = {"repeats": 3, "warmup": 1, "min_run_time": 0.0, "threads": 1}


class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.body = nn.ModuleList(
            [nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 4, 3, groups=2)]
        )
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        for layer in self.body:
            x = layer(x).relu()
        return self.fc(self.drop(self.norm(x)).mean(dim=(2, 3)))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NET_MACS = {"body.0": 64 * 6 * 27, "body.1": 36 * 4 * 27, "fc": 40}  # of one image


def snapshot(model):
    tensors = {k: (v.clone(), v._version) for k, v in model.state_dict(keep_vars=True).items()}
    modes = [m.training for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return tensors, modes, hooks, [p.grad for p in model.parameters()]


def assert_unchanged(model, before):
    tensors, *rest = before
    after, *rest_after = snapshot(model)
    assert rest == rest_after
    for key, (value, version) in tensors.items():
        assert torch.equal(after[key][0], value), key
        assert after[key][1] == version, key


# --- counts ---


class Token(nn.Module):
    """Passes a view of a parameter on to a child, in a tuple."""

    def __init__(self):
        super().__init__()
        self.token, self.body = nn.Parameter(torch.ones(1, 4)), Pair()

    def forward(self, x):
        return self.body((x, self.token.expand(len(x), -1)))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, pair):
        return self.fc(pair[0] + pair[1])


def test_macs_where_modules_pass_views_of_parameters():
    model = Token()
    assert count_macs(model, torch.zeros(3, 4)) == 3 * 8
    assert model.token.requires_grad


def test_macs_leave_shared_modules_and_tied_weights_as_they_are():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model.append(model[0])
    model[2].weight = model[0].weight
    before = dict(model.named_parameters(remove_duplicate=False))
    assert count_macs(model, torch.zeros(1, 4)) == 3 * 16
    after = dict(model.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert model[2].weight is model[0].weight is model[3].weight


def test_macs_by_hand():
    assert count_macs(Net(), X[:1]) == sum(NET_MACS.values())
    assert count_macs(Net(), X[:1], per_layer=True) == NET_MACS
    assert count_macs(Net(), X) == 2 * sum(NET_MACS.values())


def test_counting_leaves_the_model_alone():
    model = Net().train()
    model.norm.eval()  # a frozen norm in a training model must stay frozen
    state, seed = snapshot(model), torch.get_rng_state()
    count_macs(model, X)
    count_macs(model, X, per_layer=True)
    assert_unchanged(model, state)
    assert torch.equal(torch.get_rng_state(), seed)


def test_buffers_that_a_forward_writes_are_kept():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            self.calls += 1
            return self.fc(x)

    model = Counter()
    assert count_macs(model, torch.zeros(1, 3)) == 6
    assert model.calls == 0


def test_mode_is_put_back_after_an_error():
    model = Net().train()
    with pytest.raises(ValueError, match=r"Cannot run Net .*\(1, 5, 8, 8\): RuntimeError"):
        count_macs(model, torch.zeros(1, 5, 8, 8), per_layer=True)
    assert model.training
    assert not model.fc._forward_hooks


def test_work_is_charged_to_the_module_that_does_it():
    class Odd(nn.Module):
        """Multiplies by itself, and calls a layer twice that it holds under two names."""

        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = self.one

        def forward(self, x):
            return self.two(self.one(x)) @ self.one.weight

    assert count_macs(Odd(), torch.zeros(1, 4), per_layer=True) == {"": 16, "one": 32}


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_is_counted(need_weights):
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=need_weights)[0]

    length, width = 5, 8
    expected = 4 * length * width**2 + 2 * length**2 * width  # projections, two products
    assert count_macs(Attend(), torch.randn(1, length, width)) == expected


def test_encoder_layer_is_counted_in_spite_of_its_fast_path():
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    expected = 5 * (4 * 64 + 2 * 8 * 16) + 2 * 25 * 8
    assert count_macs(model, torch.randn(1, 5, 8)) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_scaled_dot_product_is_counted():
    class Product(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert count_macs(Product(), torch.randn(1, 2, 5, 8)) == 2 * 2 * 25 * 8


def test_parameters_and_bytes():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).half()
    assert num_parameters(model) == 8 + 4
    assert num_bytes(model) == 2 * (8 + 4 + 4) + 8  # half parameters and statistics, one int64


# --- order and statistics, with a clock that the calls move ---


class FakeTime:
    """A clock; its calls note their name and take a given time, one value per call."""

    def __init__(self):
        self.now = 0.0
        self.order = []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def run():
            self.order.append(name)
            self.now += seconds() if callable(seconds) else seconds

        return run


def turns(names, rounds):
    """The order in which models should run: there and back again."""
    order = [name for i in range(rounds) for name in (names if i % 2 == 0 else names[::-1])]
    return runs_of(order)


def runs_of(order):
    """Collapse repetitions: AABBB -> AB."""
    return [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]


def test_models_take_turns():
    clock = FakeTime()
    calls = {name: clock.call(name, 0.001) for name in "ABC"}
    interleave(calls, repeats=5, warmup=2, min_run_time=0.004, clock=clock)
    before = list("ABC") * (2 + 1)  # warm-up, estimate
    assert runs_of(clock.order) == [*before, *turns("ABC", 5)]
    # torch's Timer warms up with two calls
    num_calls = 3 * (2 + 1) + 5 * (MOST_CALLS + 2 + 4)
    assert [clock.order.count(name) for name in "ABC"] == [num_calls] * 3


def test_engines_take_turns_and_settle_before_they_are_timed():
    """What runs first after another engine is slowed down by that one's waiting threads."""
    clock = FakeTime()
    last = ["", 0.0]

    def call(engine, name):
        def seconds():
            if last[0] != engine:
                last[:] = [engine, clock.now]
            return 0.002 if clock.now - last[1] < SETTLING / 2 else 0.001

        return clock.call((engine, name), seconds)

    calls = {(engine, name): call(engine, name) for engine in "xy" for name in "AB"}
    settings = {"repeats": 7, "warmup": 1, "min_run_time": 0.0, "clock": clock}
    found = take_turns(calls, **settings, engine_of=itemgetter(0))
    assert all(len(samples) == 7 for samples in found.samples.values())
    for name in calls:
        assert found.samples[name] == pytest.approx([1.0] * 7)
    engines = runs_of([engine for engine, _ in clock.order])
    assert engines == list("xy" * (1 + 1) + "xyx")  # warm-up, estimate; five rounds, two rounds


def test_samples_begin_when_the_caches_hold_the_network():
    """The first calls after another network read their weights from further away."""
    clock = FakeTime()

    def call(name, seconds):
        def slow_at_first():
            since = next((i for i, other in enumerate(clock.order[::-1]) if other != name), 99)
            return seconds * (1 + max(4 - since, 0))

        return clock.call(name, slow_at_first)

    calls = {"dense": call("dense", 0.004), "half": call("half", 0.002)}
    result = interleave(calls, repeats=4, warmup=1, min_run_time=0.0, clock=clock)
    assert result["dense"].median_ms == pytest.approx(4.0)
    assert result["half"].median_ms == pytest.approx(2.0)
    assert result["half"].ratio == pytest.approx(0.5)


def test_samples_last_the_minimal_time():
    clock = FakeTime()
    calls = {"slow": clock.call("slow", 0.010), "fast": clock.call("fast", 0.001)}
    result = interleave(calls, repeats=2, warmup=0, min_run_time=0.0035, clock=clock)
    assert result["slow"].calls_per_sample == 1
    assert result["fast"].calls_per_sample == 4
    assert result["fast"].num_samples == 2
    assert result["fast"].median_ms == pytest.approx(1.0)
    assert result["fast"].ratio == pytest.approx(0.1)
    assert result["slow"].ratio == 1.0


def test_ratio_is_the_median_of_ratios_within_a_round():
    """A machine that slows down from round to round does not change the ratio of the pair."""
    clock = FakeTime()

    def slower():  # two models: those of the estimate, then rounds of warm-up and a timed call
        calls = len(clock.order) - 1
        return 1.0 if calls < 2 * 3 else 2.0 ** (1 + (calls - 2 * 3) // (2 * (MOST_CALLS + 3)))

    calls = {
        "dense": clock.call("dense", lambda: 0.001 * slower()),
        "half": clock.call("half", lambda: 0.0005 * slower()),
    }
    result = interleave(calls, repeats=5, warmup=0, min_run_time=0.0, clock=clock)
    samples = [2.0**k for k in range(1, 6)]  # round 0 is the estimate
    assert result["dense"].median_ms == pytest.approx(samples[2])
    assert result["dense"].iqr_ms == pytest.approx(samples[3] - samples[1])
    assert result["half"].median_ms == pytest.approx(samples[2] / 2)
    assert result["half"].ratio == pytest.approx(0.5)
    assert result["half"].ratio_iqr == pytest.approx(0.0)


def test_one_disturbed_round_does_not_move_the_ratio():
    clock = FakeTime()
    calls = {
        "dense": clock.call("dense", 0.001),
        "half": clock.call("half", lambda: 0.5 if len(clock.order) > last else 0.0005),
    }
    last = 2 * 3 + 4 * 2 * (MOST_CALLS + 3)  # calls before the last round
    result = interleave(calls, repeats=5, warmup=0, min_run_time=0.0, clock=clock)
    assert result["half"].ratio == pytest.approx(0.5)


def test_a_clock_that_stands_still_is_survived():
    result = interleave({"a": int}, repeats=1, warmup=0, min_run_time=0.0, clock=lambda: 0.0)
    assert (result["a"].ratio, result["a"].iqr_ms) == (1.0, 0.0)


# --- whole benchmark ---


class Recorder(nn.Module):
    """Identity on (N, C) that writes down who ran, in which mode and with how many threads."""

    def __init__(self, name, log):
        super().__init__()
        self.name, self.log = name, log

    def forward(self, x):
        self.log.append(
            (self.name, self.training, torch.is_inference_mode_enabled(), torch.get_num_threads())
        )
        return x


def test_benchmark_interleaves_in_inference_mode_at_each_number_of_threads():
    log, before = [], torch.get_num_threads()
    models = {name: Recorder(name, log).train() for name in ("dense", "masked", "compact")}
    result = benchmark(models, torch.zeros(2, 3), **{**QUICK, "threads": [1, 2]})
    timed = [entry for entry in log if entry[2]]
    assert not any(training for _, training, _, _ in log)
    assert {threads for *_, threads in timed} >= {1, 2}
    names = [name for name, *_, threads in timed if threads == 2]
    untimed = list(models) * (QUICK["warmup"] + 2)
    look_for_layers = list(models)
    timed = turns(list(models), QUICK["repeats"])
    assert runs_of(names) == [*untimed, *timed, *look_for_layers]
    assert [run.threads for run in result.runs] == [1, 2]
    assert torch.get_num_threads() == before
    assert all(model.training for model in models.values())


def test_benchmark_states_what_it_measured():
    dense, compact = Net().train(), Net(width=2)
    states = snapshot(dense), snapshot(compact)
    x = X.to(memory_format=torch.channels_last)
    result = benchmark({"dense": dense, "compact": compact}, x, **QUICK)
    assert_unchanged(dense, states[0])
    assert_unchanged(compact, states[1])
    assert (result.input_shape, result.memory_format) == ((3, 8, 8), "channels_last")
    assert result.baseline == "dense"
    assert result.models["dense"] == ModelSize(
        sum(NET_MACS.values()), num_parameters(dense), num_bytes(dense)
    )
    assert result.machine.torch == torch.__version__
    assert result.machine.processor
    run = result.run(1)
    assert (run.dtype, run.batch_size, run.threads) == ("float32", 2, 1)
    assert list(run.engines) == ["eager"]
    assert list(run.network) == ["dense", "compact"]
    assert run.fastest["compact"].ratio == run.network["compact"].ratio
    assert torch.__version__.startswith(result.versions["torch"])
    assert list(run.layers) == ["body.0", "body.1", "fc"] == list(result.layer_macs)
    assert result.layer_macs["body.0"] == {"dense": NET_MACS["body.0"], "compact": 64 * 2 * 27}
    assert all(list(timings) == ["dense", "compact"] for timings in run.layers.values())


def test_layers_are_called_on_their_real_inputs():
    class Spy(nn.Conv2d):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    seen, model = [], Net()
    model.body[1] = Spy(6, 4, 3)
    with torch.no_grad():
        expected = model.body[0](X).relu()
    benchmark({"only": model}, X, **QUICK)
    seen = [x for x in seen if len(x) == len(X)]  # multiply-adds are counted on one image
    assert len(seen) > 10
    for x in seen:
        torch.testing.assert_close(x, expected)


def test_missing_and_replaced_layers():
    class Wrapped(nn.Module):
        """Stands where a convolution stood, as a column-sparse one would."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    class Extra(Net):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(10, 10)
            self.body[0] = Wrapped(self.body[0])
            self.drop = nn.Identity()

        def forward(self, x):
            return self.extra(super().forward(x))

    gone = Net()
    gone.body[1] = nn.Identity()
    gone.norm, gone.fc = nn.BatchNorm2d(6), nn.Linear(6, 10)
    result = benchmark({"dense": Net(), "extra": Extra(), "gone": gone}, X, **QUICK)
    layers = result.run().layers
    assert list(layers["body.0"]) == ["dense", "extra", "gone"]
    assert list(layers["body.1"]) == ["dense", "extra"] == list(result.layer_macs["body.1"])
    assert list(layers["extra"]) == ["extra"]
    assert layers["extra"]["extra"].ratio == 1.0
    assert result.layer_macs["body.0"]["extra"] == NET_MACS["body.0"]


def test_layers_that_are_never_called_are_left_out():
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    result = benchmark({"encoder": model}, torch.randn(1, 5, 8), **QUICK)
    assert list(result.run().layers) == ["linear1", "linear2"]


def test_without_layers():
    result = benchmark({"net": Net()}, X, per_layer=False, **QUICK)
    assert not result.run().layers
    assert not result.layer_macs


# --- engines ---


@pytest.fixture
def engines(monkeypatch):
    """Put a right engine, a wrong one, one that fails and a missing one in the place of all."""

    def right(model, inputs):
        return lambda: inputs.run(model)

    def wrong(model, inputs):
        return lambda: inputs.run(model) + 1

    def failing(model, inputs):
        raise RuntimeError("no such operator\nand a long trace")

    table = {
        "eager": Engine("eager", right),
        "right": Engine("right", right),
        "wrong": Engine("wrong", wrong),
        "failing": Engine("failing", failing),
        "missing": Engine("missing", right, packages=("nowhere",), extra="engines"),
        "alone": Engine("alone", right, packages=("nowhere", "json")),
        "rare": Engine("rare", wrong, timed=False),
    }
    monkeypatch.setattr(engines_module, "ENGINES", table)


def test_every_setting_is_a_run_of_all_engines_in_turns(engines):
    log, models = [], {}
    for name in ("dense", "compact"):
        models[name] = Recorder(name, log)
    settings = {"batch_size": [1, 3], "dtype": ["float32", "bfloat16"], "threads": [1, 2]}
    result = benchmark(models, torch.zeros(2, 3), engines="right", **{**QUICK, **settings})
    found = [(run.dtype, run.batch_size, run.threads) for run in result.runs]
    assert found == list(product(["float32", "bfloat16"], [1, 3], [1, 2]))
    for run in result.runs:
        assert {name: list(timings) for name, timings in run.engines.items()} == {
            "eager": ["dense", "compact"],
            "right": ["dense", "compact"],
        }
        assert run.engines["eager"]["dense"].ratio == 1.0
        assert run.fastest["dense"].ratio == 1.0
        assert not run.left_out
    assert result.run(2, 3, "bfloat16").threads == 2
    names = [name for name, *_, threads in log if threads == 2]
    each = turns(["dense", "compact"], QUICK["repeats"])
    assert runs_of(names)[-2 * len(each) :] == each * 2  # one engine after the other


def test_a_batch_is_cut_or_repeated_and_keeps_its_layout():
    sizes = []

    class Spy(nn.Module):
        def forward(self, x):
            sizes.append((len(x), x.is_contiguous(memory_format=torch.channels_last)))
            assert torch.equal(x[-1], X[(len(x) - 1) % len(X)])
            return x

    x = X.to(memory_format=torch.channels_last)
    benchmark({"spy": Spy()}, x, batch_size=[1, 2, 5], per_layer=False, **QUICK)
    assert set(sizes) == {(1, True), (2, True), (5, True)}


def test_types_are_converted_in_copies():
    model = Net()
    result = benchmark({"net": model}, X, dtype=["bfloat16", "float32"], **QUICK)
    assert [run.dtype for run in result.runs] == ["bfloat16", "float32"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.is_inference() for p in model.parameters())
    assert list(result.runs[0].layers) == ["body.0", "body.1", "fc"]


def test_what_an_engine_cannot_run_is_left_out(engines):
    result = benchmark({"net": Net()}, X, engines=["right", "wrong", "failing"], **QUICK)
    run = result.run()
    assert list(run.engines) == ["eager", "right"]
    assert run.left_out["net, failing"] == "RuntimeError: no such operator"
    assert "'wrong' computes something else" in run.left_out["net, wrong"]


def test_an_engine_that_is_not_installed_is_an_error(engines):
    with pytest.raises(ValueError, match=r"'missing' needs nowhere.*\[engines\]"):
        benchmark({"net": Net()}, X, engines="missing", **QUICK)
    result = benchmark({"net": Net()}, X, engines="all", **QUICK)
    assert list(result.run().engines) == ["eager", "right"]
    assert set(result.run().left_out) == {"net, wrong", "net, failing"}


def test_an_engine_of_another_package_names_that(engines):
    with pytest.raises(ValueError, match=r"'alone' needs nowhere, .* `pip install nowhere`"):
        benchmark({"net": Net()}, X, engines="alone", **QUICK)


class Two(nn.Module):
    """Returns several tensors, nested."""

    def forward(self, x):
        return x, {"more": [2 * x]}


def test_all_tensors_of_an_output_are_compared(engines, monkeypatch):
    def second_wrong(model, inputs):
        return lambda: (inputs.args[0], {"more": [3 * inputs.args[0]]})

    def first_only(model, inputs):
        return lambda: inputs.args[0]

    for name, made in {"second": second_wrong, "first": first_only}.items():
        monkeypatch.setitem(engines_module.ENGINES, name, Engine(name, made))
    names = ["right", "second", "first"]
    run = benchmark({"two": Two()}, X, engines=names, per_layer=False, **QUICK).run()
    assert list(run.engines) == ["eager", "right"]
    assert (
        "outputs differ by 3.3e-01" in run.left_out["two, second"]
        or "5.0e-01" in (run.left_out["two, second"])
    )
    assert "it returns 1 tensors instead of 2" in run.left_out["two, first"]


def test_engines_need_a_tensor(engines):
    class Text(nn.Module):
        def forward(self, x):
            return "text"

    result = benchmark({"text": Text()}, X, engines="right", per_layer=False, **QUICK)
    assert "returns tensors, got str" in result.run().left_out["text, right"]


def test_a_model_that_eager_cannot_run_is_left_out_but_not_the_first(engines):
    class Narrow(nn.Module):
        def forward(self, x):
            if x.dtype == torch.bfloat16:
                raise NotImplementedError("not for 'BFloat16'")
            return x

    models = {"dense": nn.Identity(), "csr": Narrow()}
    both = {**QUICK, "dtype": ["float32", "bfloat16"], "engines": "right"}
    wide, narrow = benchmark(models, X, **both).runs
    assert list(wide.network) == ["dense", "csr"]
    assert list(narrow.network) == list(narrow.engines["right"]) == ["dense"]
    assert narrow.left_out == {"csr, eager": "NotImplementedError: not for 'BFloat16'"}
    with pytest.raises(NotImplementedError):
        benchmark({"csr": Narrow()}, X, **both)


def test_fastest_compares_the_fastest_engines_round_by_round():
    samples = {
        ("eager", "dense"): [4.0, 4.0, 8.0],
        ("quick", "dense"): [2.0, 2.0, 4.0],
        ("eager", "compact"): [3.0, 3.0, 3.0],
        ("quick", "compact"): [1.0, 0.5, 1.0],
        ("eager", "csr"): [8.0, 6.0, 8.0],
    }
    found = latency._fastest(Turns(samples, dict.fromkeys(samples, 1)), "dense")
    assert found == {
        "dense": Fastest("quick", 1.0, 0.0),
        "compact": Fastest("quick", 0.25, 0.125),
        "csr": Fastest("eager", 3.0, 1.0),
    }


@pytest.mark.filterwarnings("ignore")  # of exporters
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch_export"])
def test_engines_that_read_files_return_all_outputs(engine):
    if not engines_module.ENGINES[engine].available:
        pytest.skip(f"{engine} is not installed")
    run = benchmark({"two": Two()}, X, engines=engine, per_layer=False, **QUICK).run()
    assert list(run.engines) == ["eager", engine], run.left_out


@pytest.mark.filterwarnings("ignore")  # of exporters and compilers
@pytest.mark.parametrize("engine", ["compile", "onnxruntime", "openvino"])
def test_installed_engines_run_a_network(engine):
    if engine not in engines_module.installed_engines():
        pytest.skip(f"{engine} is not installed")
    models = {"dense": Net(), "csr": with_csr_layers(with_zeros(Net()))}
    run = benchmark(models, X, engines=engine, per_layer=False, **QUICK).run()
    assert "dense" in run.engines[engine], run.left_out
    assert ("csr" in run.engines[engine]) == (engine == "compile")
    assert ("csr, " + engine in run.left_out) == (engine != "compile")


@pytest.mark.filterwarnings("ignore")  # of exporters
@pytest.mark.parametrize("name", ["alexnet", "convnet", "lenet", "mlp", "resnet20"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_installed_engines_run_every_kind_of_backbone(engine, name):
    if engine not in engines_module.installed_engines():
        pytest.skip(f"{engine} is not installed")
    model = create_backbone(name).eval()
    x = torch.randn(2, *model.input_shape)
    call = engines_module.prepare_checked(engine, model, x, model(x).detach())
    (output,) = tensors_of(call())
    assert output.shape == (2, model.num_classes)


# --- compressed sparse rows ---


def with_zeros(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) > 0.7)
    return model.eval()


def test_csr_network_computes_the_same_with_fewer_multiply_adds():
    model = with_zeros(Net())
    sparse = with_csr_layers(model)
    kinds = [type(layer).__name__ for layer in (*sparse.body, sparse.fc)]
    assert kinds == ["CsrConv2d", "CsrConv2d", "CsrLinear"]
    torch.testing.assert_close(sparse(X), model(X).detach())
    again = copy.deepcopy(sparse)
    torch.testing.assert_close(again(X), model(X).detach())
    torch.testing.assert_close(again.double()(X.double()).float(), model(X).detach())
    kept = [int((layer.weight != 0).sum()) for layer in (*model.body, model.fc)]
    expected = {"body.0": 64 * kept[0], "body.1": 36 * kept[1], "fc": kept[2]}
    assert count_macs(sparse, X[:1], per_layer=True) == expected
    bytes_of_weights = sum(8 * kept[i] + 4 * (rows + 1) for i, rows in enumerate((6, 0, 10)))
    bytes_of_weights += 4 * (2 + 1)  # the second convolution has two groups of two rows
    plain = num_bytes(model) - sum(4 * m.weight.numel() for m in (*model.body, model.fc))
    assert abs(num_bytes(sparse) - plain - bytes_of_weights) <= 4 * 8


def test_csr_leaves_what_it_cannot_be_or_has_no_zeros():
    layers = [
        nn.Conv2d(1, 1, 3, padding_mode="circular"),
        nn.Conv2d(1, 1, 2, padding="same"),
        nn.ConvTranspose2d(1, 1, 2),
        nn.Conv2d(1, 1, 1),
        nn.Linear(2, 2),
    ]
    for layer in layers[:3]:
        nn.init.zeros_(layer.weight)
    model = nn.Sequential(*layers)
    assert [type(layer) for layer in with_csr_layers(model)] == [type(layer) for layer in layers]
    shared = nn.Linear(2, 2)
    nn.init.zeros_(shared.weight)
    twice = with_csr_layers(nn.Sequential(shared, shared))
    assert twice[0] is twice[1]
    assert isinstance(with_csr_layers(shared), CsrLinear)


# --- records ---


def example_record():
    timing = Timing(1.25, 0.125, 0.5, 0.0625, 30, 4)
    timings = {"dense": timing, "compact": timing}
    fastest = {name: Fastest("eager", 0.5, 0.0625) for name in timings}
    layers = {"conv1": {"dense": timing}}
    return BenchmarkResult(
        machine=Machine("a processor", 2, "cpu", "3.11", "2.14"),
        versions={"torch": "2.14"},
        input_shape=(3, 8, 8),
        memory_format="contiguous",
        models={"dense": ModelSize(100, 10, 40), "compact": ModelSize(50, 5, 20)},
        layer_macs={"conv1": {"dense": 100}},
        runs=(Run("float32", 4, 1, {"eager": timings}, fastest, {}, layers),),
    )


def test_a_record_of_another_form_is_refused():
    old = example_record().to_dict() | {"dtype": "float32", "batch_size": 4}
    with pytest.raises(ValueError, match=r"benchmark: .*unknown: batch_size, dtype"):
        BenchmarkResult.from_dict(old)


def test_record_round_trip(tmp_path):
    record = example_record()
    record.save(tmp_path / "sub" / "record.json")
    assert BenchmarkResult.load(tmp_path / "sub" / "record.json") == record
    assert [file.name for file in (tmp_path / "sub").iterdir()] == ["record.json"]


def test_measured_record_round_trip(tmp_path):
    result = benchmark({"net": Net()}, X, **QUICK)
    result.save(tmp_path / "record.json")
    assert BenchmarkResult.load(tmp_path / "record.json") == result


def test_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "record.json"
    example_record().save(path)
    old = path.read_text()
    timing = Timing(float("nan"), 0.0, 1.0, 0.0, 1, 1)
    broken = example_record()
    broken.runs[0].engines["eager"]["dense"] = timing
    with pytest.raises(ValueError, match=r"JSON|nan"):
        broken.save(path)
    assert path.read_text() == old
    assert len(list(tmp_path.iterdir())) == 1


def change(path, value):
    data = json.loads(json.dumps(example_record().to_dict()))
    *parents, last = path
    target = data
    for key in parents:
        target = target[key]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["memory_format"], None, "benchmark: .*missing: memory_format"),
        (["color"], "red", "benchmark: .*unknown: color"),
        (["machine", "torch"], None, r"benchmark.machine: .*missing: torch"),
        (["runs", 0, "batch_size"], "one", r"runs\[0\].batch_size: expected int, got 'one'"),
        (["runs", 0, "batch_size"], True, r"runs\[0\].batch_size: expected int, got True"),
        (["runs", 0, "engines", "eager", "dense", "ratio"], "x", r"eager.dense.ratio: expected"),
        (["models"], {}, "at least one entry"),
        (["runs"], [], "at least one entry"),
        (["runs"], {}, "benchmark.runs: expected list"),
    ],
)
def test_malformed_records_are_refused(path, value, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkResult.from_dict(change(path, value))


def test_load_refuses_what_is_not_json(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        BenchmarkResult.load(tmp_path / "broken.json")


def test_run_by_setting():
    record = example_record()
    assert record.run() == record.run(1, 4, "float32") == record.run(dtype="float32")
    with pytest.raises(ValueError, match=r"expected threads among \[\(1,\)\], got \(4,\)"):
        record.run(4)
    with pytest.raises(ValueError, match=r"batch_size, dtype among \[\(4, 'float32'\)\]"):
        record.run(batch_size=4, dtype="bfloat16")


def test_records_are_read_without_torch():
    code = (
        "import sys\n"
        "from ssl_lightning.measure import BenchmarkResult\n"
        "assert 'torch' not in sys.modules\n"
        "import ssl_lightning.measure as b\n"
        "assert callable(b.benchmark) and callable(b.count_macs)\n"
        "assert not hasattr(b, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {}}, "at least one model"),
        ({"repeats": 0}, "`repeats` >= 1, got 0"),
        ({"warmup": -1}, "`warmup` >= 0, got -1"),
        ({"threads": 0}, "threads: expected a whole number >= 1, got 0"),
        ({"threads": []}, "number as `threads`, got none"),
        ({"batch_size": 0}, "`batch_size` >= 1, got 0"),
        ({"batch_size": []}, "number as `batch_size`, got none"),
        ({"dtype": "float23"}, "Unknown type 'float23'. Did you mean float32"),
        ({"engines": ["eager", "openvin"]}, "Unknown engine 'openvin'. Did you mean openvino"),
        ({"min_run_time": -1.0}, "`min_run_time` >= 0"),
        ({"example_input": torch.zeros(3)}, "batch dimension"),
        ({"models": {"a": nn.Linear(3, 2), "b": nn.Linear(3, 4)}}, "outputs of one shape"),
    ],
)
def test_errors_say_what_to_do(arguments, message):
    usual = {"models": {"a": nn.Linear(3, 2)}, "example_input": torch.zeros(1, 3), **QUICK}
    with pytest.raises(ValueError, match=message):
        benchmark(**{**usual, **arguments})


class ManyInputs(nn.Module):
    """Takes tensors by position and by name, nested, beside None, a number and token numbers."""

    def __init__(self):
        super().__init__()
        self.conv, self.tokens = nn.Conv2d(3, 4, 3, padding=1), nn.Embedding(7, 4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x, bias=None, scale=1.0, *, mask=None, more=None):
        y = (self.conv(x) * scale * mask).mean((2, 3))
        return self.fc(y + self.tokens(more["tokens"][0]).sum(1))


def many_inputs(batch=2):
    tokens = torch.arange(3 * batch).reshape(batch, 3) % 7
    x, mask = torch.randn(batch, 3, 8, 8), torch.rand(batch, 1, 8, 8)
    return Inputs(x, None, 2.0, mask=mask, more={"tokens": [tokens], "none": None})


def test_inputs_that_are_not_tensors():
    """Every engine times them, after its output was compared with eager's."""
    net = ManyInputs().eval()
    result = benchmark(
        {"dense": net, "same": copy.deepcopy(net)},
        many_inputs(),
        engines="all",
        batch_size=[1, 3],
        dtype=["float32", "float64"],
        repeats=1,
        warmup=0,
        min_run_time=0,
        threads=1,
    )
    assert result.input_shape == (3, 8, 8)
    assert result.models["dense"].macs == 64 * 3 * 4 * 9 + 20
    assert [(run.dtype, run.batch_size) for run in result.runs] == [
        ("float32", 1),
        ("float32", 3),
        ("float64", 1),
        ("float64", 3),
    ]
    for run in result.runs:
        assert set(run.layers) == {"conv", "fc"}
        if run.dtype == "float32":
            assert set(run.engines) == set(engines_module.installed_engines())
            assert run.left_out == {}
    with pytest.raises(ValueError, match="Expected tensors as example input"):
        benchmark({"dense": net}, (None, 1))


def test_a_network_of_token_numbers_is_measured_in_its_own_type():
    net = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    result = benchmark({"a": net}, torch.zeros(2, 3, dtype=torch.long), repeats=1, threads=1)
    assert (result.runs[0].dtype, result.models["a"].macs) == ("float64", 24)


def test_prune_like_takes_inputs_that_are_not_tensors():
    torch.manual_seed(0)
    net, like, inputs = ManyInputs(), ManyInputs(), many_inputs()
    with torch.no_grad():
        like.conv.weight[:2] = 0
        like.conv.bias[:2] = 0
    prune_like_(net, inputs, like, [{"kind": "filter", "layers": "conv"}])
    assert kept_groups(net)["conv"]["filters"] == [2, 4]


SIGNALLED = """
import faulthandler, gc, signal, subprocess, torch
from ssl_lightning.measure.engines import find_engine
from ssl_lightning.graph import Inputs
faulthandler.enable()
inputs = Inputs(torch.zeros(1, 4))
calls = [find_engine("openvino").prepare(torch.nn.Linear(4, 2), inputs) for _ in range(2)]
for call in calls:
    call()
del call
while calls:
    calls.pop(0)
    gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("signalled"))
subprocess.run(["true"], check=True)
"""


def test_a_process_that_used_openvino_survives_signals():
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "signalled\n"), done.stderr[-500:]


def test_networks_have_names():
    with pytest.raises(ValueError, match=r"expected name -> network, got Linear\. Give them names"):
        benchmark(torch.nn.Linear(2, 2), torch.zeros(1, 2))
