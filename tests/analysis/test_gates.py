"""The gate report of every model that has gates: against the gates themselves."""

from __future__ import annotations

import pytest
import torch

from mtlfast.analysis import gate_report
from mtlfast.analysis.figures.gates import draw_gates
from mtlfast.models import build, gate_usage

OUT = 5
FIMS = ["masknet", "gdcn", {"name": "memonet", "num_codewords": 40}]
PLE = {"name": "ple", "expert_units": [[6], [4]], "num_task_experts": 2, "tower_units": [3]}
MODELS = {
    "dtn": {"interactions": FIMS, "output_dim": OUT, "modules_per_group": 2},
    "tfi": {"interaction": "gdcn", "output_dim": OUT, "modules_per_group": 2},
    "sfm": {"interactions": ["gdcn"], "output_dim": OUT, "head": PLE},
    "mtl": {"head": {"name": "mmoe", "expert_units": [6]}},
    "dtrn": {"embed_dim": 4},
}


def make(name, spec, **options):
    torch.manual_seed(0)
    return build(name, spec, {"embed_dim": 4, "init_std": 0.7, **MODELS[name], **options})


def by_gate(report):
    found: dict[tuple[str, str], list[float]] = {}
    for weight in report.weights:
        found.setdefault((weight.candidate.task, weight.candidate.gate), []).append(weight.mean)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_gate_adds_up_to_one_and_batches_do_not_matter(source, name):
    model = make(name, source.spec)
    assert model.training
    done = []
    report = gate_report(model, source.test_batches(130), source.spec, on_samples=done.append)
    assert model.training
    assert (report.samples, sum(done)) == (500, 500)
    gates = by_gate(report)
    assert {task for task, _ in gates} == set(source.spec.tasks)
    for means in gates.values():
        assert sum(means) == pytest.approx(1, abs=1e-5)
    whole = gate_report(model, source.test_batches(500), source.spec)
    for one, other in zip(report.weights, whole.weights, strict=True):
        assert one.candidate == other.candidate
        assert (one.mean, one.sd) == pytest.approx((other.mean, other.sd), abs=1e-6)


def test_dtn_equals_its_own_gates(source):
    model = make("dtn", source.spec).eval()
    batches = source.test_batches(100)
    usage = gate_usage(model, batches)
    report = {w.candidate: w for w in gate_report(model, batches, source.spec).weights}
    with torch.no_grad():
        gates = model(torch.from_numpy(source.sparse), return_gates=True).gates.double()
    groups = [*source.spec.tasks, "shared"]
    methods = ["masknet", "gdcn", "memonet"]
    seen = 0
    for t, task in enumerate(source.spec.tasks):
        for i, key in enumerate(model.module_keys):
            own = key.group == t
            place = 1 if own else 0
            candidate = (
                task, "own" if own else "other", groups[key.group], methods[key.method], key.number
            )  # fmt: skip
            assert report[candidate].mean == pytest.approx(float(usage[t, place, i]), abs=1e-9)
            sd = float(gates[:, t, place, i].std(unbiased=False))
            assert report[candidate].sd == pytest.approx(sd, abs=1e-7)
            seen += 1
    assert seen == len(report) == 2 * 3 * 2 * 3


def test_trimmed_dtn_reports_what_is_left(source):
    model = make("dtn", source.spec, modules_per_group=1)
    own = [i for i, key in enumerate(model.module_keys) if key.group == 0]
    model.remove_modules(own)
    report = gate_report(model, source.test_batches(500), source.spec)
    assert ("buy", "own") not in by_gate(report)
    assert len(by_gate(report)["buy", "other"]) == 6
    draw_gates(report).savefig("/dev/null", format="png")


def test_two_entries_of_one_method_are_told_apart(source):
    model = make("dtn", source.spec, interactions=["gdcn", "masknet", "gdcn"])
    report = gate_report(model, source.test_batches(500), source.spec)
    candidates = [w.candidate for w in report.weights]
    assert len(set(candidates)) == len(candidates) == 2 * 3 * 3 * 2


def test_gates_mix_the_outputs_of_tfi(source):
    model = make("tfi", source.spec).eval()
    ids = torch.from_numpy(source.sparse)
    with torch.no_grad():
        out = model(ids, return_gates=True, return_modules=True)
        torch.testing.assert_close(out.logits, model(ids))
        for t in range(2):
            rows = [2 * t, 2 * t + 1, 4, 5]  # own modules, then the shared ones
            mixed = torch.einsum("bn,nbd->bd", out.gates[:, t], out.modules[rows])
            tower = model.towers(mixed[None], slice(t, t + 1))[:, 0]
            torch.testing.assert_close(tower, out.logits[:, t])
        assert model(ids, return_gates=True).modules is None
        assert model(ids, return_modules=True).gates is None
    report = gate_report(model, source.test_batches(500), source.spec)
    means = [w.mean for w in report.weights if w.candidate.task == "share"]
    assert means == pytest.approx(out.gates[:, 1].mean(0).tolist(), abs=1e-6)
    groups = [w.candidate.group for w in report.weights]
    assert groups == ["buy", "buy", "shared", "shared", "share", "share", "shared", "shared"]


def test_experts_of_heads(source):
    model = make("mtl", source.spec).eval()
    ids = torch.from_numpy(source.sparse)
    with torch.no_grad():
        x = model.embedding(ids).flatten(1)
        expected = torch.einsum("bd,tkd->btk", x, model.head.gate_weight).softmax(-1).mean(0)
    report = gate_report(model, source.test_batches(99), source.spec)
    found = torch.tensor([w.mean for w in report.weights]).view(2, 4)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert {w.candidate.group for w in report.weights} == {"shared"}

    report = gate_report(make("sfm", source.spec), source.test_batches(500), source.spec)
    gates = by_gate(report)
    assert set(gates) == {(t, f"level {n}") for t in ("buy", "share") for n in (1, 2)}
    assert all(len(means) == 4 for means in gates.values())


def test_models_without_gates_say_so(source):
    model = make("mtl", source.spec, head={"name": "share_bottom"})
    text = r"model: expected a model with gates: DTN, TFI.* found MTL with the head ShareBottom"
    with pytest.raises(ValueError, match=text):
        gate_report(model, source.test_batches(500), source.spec)
    with pytest.raises(ValueError, match=r"found Linear$"):
        gate_report(torch.nn.Linear(1, 1), source.test_batches(500), source.spec)
    with pytest.raises(ValueError, match="batches: expected at least one sample"):
        gate_report(make("tfi", source.spec), [], source.spec)


def test_the_figure_has_a_panel_per_task(source):
    report = gate_report(make("dtn", source.spec), source.test_batches(500), source.spec)
    figure = draw_gates(report, title="it")
    assert [axes.get_title() for axes in figure.axes] == ["buy", "share"]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[0] == "buy · masknet 0"
    assert len(labels) == 18
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["gate over the own group", "gate over the other groups", "equal weights"]
