"""Relaxations, β-decay, smoothing and waiting alphas, each against an independent form in float64."""

import json
import os
import re
import signal

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import search
from benchmarks.baseline import MixedOperation, TextbookSupernet, copy_weights
from nas import Genotype
from nas.bilevel import curvature
from nas.bilevel.curvature import has_grown, largest_eigenvalue
from nas.bilevel.hypergradient import FirstOrder
from nas.bilevel.perturbation import decide, decisions
from nas.bilevel.smoothing import SMOOTHINGS
from nas.bilevel.step import beta_decay, build, objective
from nas.config.cli import parse
from nas.config.flags import SearchConfig
from nas.data.loader import Batch
from nas.errors import InputError
from nas.models.relaxation import RELAXATIONS, DirichletDraws, ExponentiatedGradient
from nas.models.supernet import Alphas, Supernet
from nas.search_space.darts import DARTS
from tests.in_process import TWO, call

SMALL = ["--init-channels=2", "--num-cells=2", "--num-nodes=1", "--lower-lr=0.1"]


pytestmark = pytest.mark.usefixtures("float64_and_seed")


def small(*flags):
    return build(parse(SearchConfig, [*SMALL, *flags]), 1, 3, torch.device("cpu"))


def batches():
    return [Batch.whole(torch.randn(6, 1, 8, 8), torch.randint(3, (6,))) for _ in range(2)]


def gradients(bilevel, train, validate):
    bilevel.virtual_step(train)
    bilevel.alpha_step(validate, train)
    return torch.cat([alpha.grad for alpha in bilevel.alphas.parameters()])


@pytest.mark.parametrize("name", RELAXATIONS)
def test_a_relaxation_draws_rows_that_add_up_to_1_and_have_the_mean_it_says(name):
    alphas = Alphas(1, relaxation=RELAXATIONS[name]())
    if name != "simplex":
        alphas.normal.data.normal_()
    torch.testing.assert_close(alphas().normal.sum(-1), torch.ones(2))
    draws = torch.stack([alphas().normal for _ in range(4000)])
    error = 5 * draws.std(0) / len(draws) ** 0.5 + 1e-12
    assert (draws.mean(0) - alphas.mean().normal).abs().le(error).all()


def test_gradients_of_dirichlet_draws_average_to_those_of_their_mean():
    raw, weights = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5)
    relaxation = DirichletDraws()
    (expected,) = torch.autograd.grad((weights * relaxation.logits(raw).softmax(-1)).sum(), raw)
    found = torch.stack([torch.autograd.grad((weights * relaxation.draw(raw)).sum(), raw)[0] for _ in range(4000)])
    assert (found.mean(0) - expected).abs().le(5 * found.std(0) / len(found) ** 0.5).all()


def test_exponentiated_gradient_is_multiplication_on_the_simplex():
    alpha = torch.nn.Parameter(torch.rand(4, 5).softmax(-1))
    alpha.grad = torch.randn(4, 5)
    expected = alpha.detach() * torch.exp(-0.1 * alpha.grad)
    ExponentiatedGradient([alpha], lr=0.1).step()
    torch.testing.assert_close(alpha.detach(), expected / expected.sum(-1, keepdim=True))
    alpha.grad = 1e6 * torch.randn(4, 5)  # where the exponential itself overflows
    ExponentiatedGradient([alpha], lr=0.1).step()
    assert alpha.isfinite().all()
    assert alpha.min() > 0


def test_beta_decay_adds_the_edge_weights_to_the_hypergradient():
    train, validate = batches()
    plain, decayed = small(), small("--beta-decay=0.5")
    decayed.begin_epoch(3, 0.1)
    for bilevel in (plain, decayed):
        for alpha in bilevel.alphas.parameters():
            alpha.data.copy_(torch.linspace(-1, 1, alpha.numel()).view_as(alpha))
    edge_weights = torch.cat([*decayed.alphas()]).detach()
    found, without = gradients(decayed, train, validate), gradients(plain, train, validate)
    torch.testing.assert_close(found, without + 3 * 0.5 * edge_weights / len(edge_weights))
    logits = torch.cat([*plain.alphas.parameters()])
    torch.testing.assert_close(beta_decay(plain.alphas), logits.exp().sum(-1).log().mean())


@pytest.mark.parametrize("kind", SMOOTHINGS)
def test_smoothing_moves_the_edge_weights_in_the_step_of_the_weights_alone(kind):
    train, validate = batches()
    plain, smooth = small(), small(f"--smoothing={kind}")
    torch.testing.assert_close(gradients(smooth, train, validate), gradients(plain, train, validate))
    seen = []
    smooth.supernet.register_forward_hook(lambda module, inputs, output: seen.append((inputs[1], output)))
    scalars = smooth.weight_step(train)
    moved, logits = seen[-1]
    change = torch.cat([*moved]).detach() - torch.cat([*smooth.alphas()]).detach()
    assert 1e-3 < change.abs().max() <= 0.05  # 0.03 at the start, before the rows were normalised
    torch.testing.assert_close(torch.cat([*moved]).sum(-1), torch.ones(4))
    assert torch.equal(scalars["lower/step_loss"], F.cross_entropy(logits, train.classes))
    passes = int(plain.supernet.stem[1].num_batches_tracked) + 1  # an attack counts as none
    assert int(smooth.supernet.stem[1].num_batches_tracked) == passes
    losses = [F.cross_entropy(output, train.classes) for _, output in seen]
    assert kind == "random" or losses[-1] > losses[0]


class PartialOperation(MixedOperation):
    """PC-DARTS as published: its edge with all channels, of which one of K goes through the mixed operation."""

    def __init__(self, channels, stride, k):
        super().__init__(channels // k, stride)
        self.stride, self.k = stride, k

    def forward(self, x, weights):
        of_edge, size = weights.sum(), x.shape[1] // self.k
        mixed, others = super().forward(x[:, :size], weights / of_edge), x[:, size:]
        others = others if self.stride == 1 else F.max_pool2d(others, 2, 2, ceil_mode=True)
        together = torch.cat([mixed, others], dim=1)
        batch, channels, *sides = together.shape
        shuffled = together.view(batch, self.k, channels // self.k, *sides).transpose(1, 2)
        return of_edge * shuffled.reshape(batch, channels, *sides)


@pytest.mark.parametrize(("k", "image_size"), [(2, 8), (4, 11)])
def test_partial_channels_are_those_of_one_module_for_each_edge(k, image_size):
    alphas = Alphas(2, weigh_edges=True)
    for alpha in alphas.parameters():
        alpha.data.normal_()
    supernet, textbook = Supernet(3, 4, 3, 5, 2, partial_channels=k), TextbookSupernet(3, 4, 3, 5, 2)
    for index, cell in enumerate(textbook.cells):
        strides = [2 if cell.reduction and source < 2 else 1 for node in (2, 3) for source in range(node)]
        cell.edges = torch.nn.ModuleList(PartialOperation(4 * 2**index, s, k) for s in strides)
    with torch.no_grad():
        copy_weights(supernet, textbook)
    edges = [torch.cat([node.softmax(-1)[0] for node in alphas.by_node[kind]]) for kind in ("normal", "reduce")]
    raw = [alphas.normal, alphas.reduce]
    weights = [rows.softmax(-1) * edge[:, None] for rows, edge in zip(raw, edges, strict=True)]
    images = torch.randn(3, 3, image_size, image_size)
    found, expected = supernet(images, alphas()), textbook(images, weights)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    by_found, by_expected = (
        torch.autograd.grad(logits.square().sum(), [*alphas.parameters()]) for logits in (found, expected)
    )
    torch.testing.assert_close(by_found, by_expected, rtol=1e-8, atol=1e-9)


def test_edges_are_ranked_by_the_product_of_both_weights():
    alphas = Alphas(2, weigh_edges=True)
    for kind in ("normal", "reduce"):
        getattr(alphas, kind).data.zero_()[:, 3] = torch.tensor([9.0, 1, 2, 2, 2])
        alphas.by_node[kind][1].data.copy_(torch.tensor([[0.0, 2.0, 1.0]]))
    found = Genotype.from_edge_weights(*(rows.tolist() for rows in alphas.mean()))
    assert {source for _, source in found.normal[2:]} == {1, 2}
    assert Genotype.derive(alphas).normal[2:] == (("skip_connect", 0), ("skip_connect", 1))


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_partial_channels_with_each_relaxation(relaxation):
    train, validate = batches()
    bilevel = small("--init-channels=4", "--partial-channels=2", f"--relaxation={relaxation}")
    before = [alpha.clone() for alpha in bilevel.alphas.by_node["reduce"]]
    bilevel.virtual_step(train)
    bilevel.alpha_step(validate, train)
    for old, new in zip(before, bilevel.alphas.by_node["reduce"], strict=True):
        assert not torch.equal(old, new)
    for rows in bilevel.alphas():
        torch.testing.assert_close(rows.sum(), torch.tensor(1.0))  # one node


def test_every_so_many_steps_the_second_term_is_compared_with_the_exact_one():
    train, validate = batches()
    onestage, exact = (
        gradients(small(f"--hypergradient={name}"), train, validate).ravel() for name in ("onestage", "exact")
    )
    compared = small("--fidelity-every=3")
    assert [compared.begin_step(step) for step in range(5)] == [True, False, False, True, False]
    compared.begin_step(6)
    compared.virtual_step(train)
    scalars = compared.alpha_step(validate, train)
    assert torch.equal(torch.cat([alpha.grad for alpha in compared.alphas.parameters()]).ravel(), onestage)
    fresh = small()
    fresh.virtual_step(train)
    first_order = FirstOrder(objective, fresh.alphas, objective, fresh.supernet, 0.1)
    first_order.compute_gradients(validate.images, validate, fresh.auxiliary, train.images, train)
    first = torch.cat([alpha.grad for alpha in fresh.alphas.parameters()]).ravel()
    expected = F.cosine_similarity(onestage - first, exact - first, 0)
    torch.testing.assert_close(scalars["upper/second_term_cosine"], expected)


def test_a_decision_keeps_what_is_missed_most():
    alphas = Alphas(3)
    alphas.make_fixable()
    worth = [torch.rand_like(rows) for rows in alphas.mean()]

    def quality(edge_weights):
        return sum((rows * more).sum() for rows, more in zip(edge_weights, worth, strict=True)).item()

    made = decisions(DARTS, 3, seed=1)
    assert len({*made}) == len(made) == DARTS.num_decisions(3) == 2 * (9 + 2)
    assert sorted(len(decision.edges) for decision in made[18:]) == [3, 3, 4, 4]
    before = alphas.mean()
    for decision in made:
        decide(alphas, decision, quality)
    cell = Genotype.from_edge_weights(*(rows.tolist() for rows in alphas.mean()))
    for kind, rows, more in zip(("normal", "reduce"), before, worth, strict=True):
        missed = rows[:, 1:] * more[:, 1:]  # none is never derived
        best = [1 + int(column) for column in missed.argmax(1)]
        value = [float(more[edge, column]) for edge, column in enumerate(best)]
        for node, edges in ((2, range(2)), (3, range(2, 5)), (4, range(5, 9))):
            kept = sorted(edges, key=lambda edge: -value[edge])[:2]
            expected = {(DARTS.primitives[best[edge]], edge - edges[0]) for edge in kept}
            assert {*cell.edges(kind)[2 * node - 4 : 2 * node - 2]} == expected


def test_a_search_decides_after_its_epochs_and_goes_on_after_a_stop(tmp_path):
    torch.set_default_dtype(torch.float32)
    flags = ["--derivation=perturbation", "--tuning-epochs=1", "--hypergradient=first-order", *TWO]
    small = ["--dataset=digits", "--train-limit=60", "--num-nodes=1", "--init-channels=2", "--num-cells=2"]
    assert call("search", tmp_path, *flags, *small, "--epochs=1", "--name=whole") == 0
    log = (tmp_path / "runs/whole/log.txt").read_text()
    assert log.count("decision ") == 4  # two edges in each kind of cell, all of which are kept
    assert "epoch 4/4" in log
    for line in log.splitlines():
        if "carries" in line:
            kind, edge, primitive = re.search(r"(normal|reduce): edge (\d)-2 carries (\w+)", line).groups()
            assert (primitive, int(edge)) in Genotype.load(tmp_path / "genotypes/whole.json").edges(kind)
    stop = pytest.MonkeyPatch()
    stopped = iter([False, False, True])

    def killed(*arguments):
        if next(stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        return decide(*arguments)

    stop.setattr(search, "decide", killed)
    assert call("search", tmp_path, *flags, *small, "--epochs=1", "--name=stopped") == 143
    stop.undo()
    assert call("search", tmp_path, "--resume=runs/stopped") == 0
    assert call("search", tmp_path, "--resume=runs/stopped", "--epochs=2") == 2
    states = [load_file(tmp_path / f"runs/{name}/checkpoint.safetensors") for name in ("whole", "stopped")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_largest_eigenvalue_is_that_of_the_whole_hessian():
    train, _ = batches()
    bilevel = small()

    def loss(*raw):
        weights = bilevel.alphas.by_kind(*(alpha.softmax(-1) for alpha in raw))
        return F.cross_entropy(bilevel.supernet.eval()(train.images, weights), train.classes)

    raw = [getattr(bilevel.alphas, kind) for kind in ("normal", "reduce")]
    blocks = torch.autograd.functional.hessian(loss, tuple(raw))
    sizes = [alpha.numel() for alpha in raw]
    whole = torch.cat(
        [
            torch.cat([b.reshape(n, m) for b, m in zip(row, sizes, strict=True)], 1)
            for row, n in zip(blocks, sizes, strict=True)
        ]
    )
    eigenvalues = torch.linalg.eigvalsh(whole)
    assert largest_eigenvalue(loss(*raw), raw) == pytest.approx(eigenvalues.max().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("eigenvalues", "grown"),
    [([1, 1, 1, 9], False), ([1, 1, 1, 1, 2.6], True), ([1, 1, 1, 1, 2.4], False), (9 * [5.0], False),
     ([9, 9, 9, 9, 1, 1, 1, 1, 1], False), ([0, 1, 1, 1, 1, 1, 2, 2, 2, 2], True)],
)  # fmt: skip
def test_growth_is_that_of_means(eigenvalues, grown):
    assert has_grown(eigenvalues, 1.3) == grown


def test_a_search_whose_loss_becomes_curved_ends_with_earlier_alphas(tmp_path, monkeypatch):
    torch.set_default_dtype(torch.float32)
    measured = iter([1.0, 1.0, 1.0, 1.1, 9.0])

    def measure(loss, *more):
        value = next(measured)
        if value == 1.1:
            os.kill(os.getpid(), signal.SIGTERM)
        return value

    monkeypatch.setattr(search, "largest_eigenvalue", measure)
    monkeypatch.setattr(curvature, "WINDOW", 1)
    small = ["--dataset=digits", "--train-limit=60", "--num-nodes=1", "--init-channels=2", "--num-cells=2", *TWO]
    assert call("search", tmp_path, *small, "--epochs=12", "--alpha-lr=0.1", "--end-eigenvalue=1.3", "--name=a") == 143
    assert call("search", tmp_path, "--resume=runs/a") == 0
    records = [json.loads(line) for line in (tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()]
    weights = {
        record["epoch"]: [value for name, value in record.items() if name.startswith("edge_weights_")]
        for record in records
        if "speed/epoch_s" in record
    }
    assert list(weights) == list(range(1, 11))
    assert weights[10] == weights[2] != weights[9]
    alphas = load_file(tmp_path / "runs/a/checkpoint.safetensors")
    assert torch.equal(alphas["alphas.normal"], alphas["past_alphas.0"][0])


def test_models_start_from_the_seed():
    starts = [torch.cat([*map(torch.ravel, small(f"--seed={seed}").state().values())]) for seed in (1, 1, 2)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_alphas_wait():
    train, validate = batches()
    bilevel = small("--alpha-warmup=2")
    before = [alpha.clone() for alpha in bilevel.alphas.parameters()]
    for epoch in range(3):
        bilevel.begin_epoch(epoch, 0.1)
        weight = bilevel.supernet.classifier.weight.clone()
        bilevel.virtual_step(train)
        assert bool(bilevel.alpha_step(validate, train)) == (epoch == 2)
        bilevel.weight_step(train)
        assert not torch.equal(weight, bilevel.supernet.classifier.weight)
        moved = [not torch.equal(old, new) for old, new in zip(before, bilevel.alphas.parameters(), strict=True)]
        assert any(moved) == (epoch == 2)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--relaxation=simplex", "--beta-decay=1"], "--beta-decay: does nothing with --relaxation simplex"),
        (
            ["--relaxation=simplex", "--alpha-weight-decay=1"],
            "--alpha-weight-decay: does nothing with --relaxation simpl",
        ),
        (["--smoothing-max=0.2"], "--smoothing-max: needs --smoothing"),
        (["--partial-channels=3"], "--partial-channels 3: must divide --init-channels, 16"),
        (["--partial-channels=4", "--smoothing=random"], "--smoothing: cannot be combined with --partial-channels"),
        (["--fidelity-every=5", "--hypergradient=exact"], "--fidelity-every: needs --hypergradient onestage"),
        (["--tuning-epochs=2"], "--tuning-epochs: needs --derivation perturbation"),
        (["--derivation=perturbation", "--end-skips=1"], "--derivation perturbation: cannot be combined with a flag"),
        (["--derivation=perturbation", "--max-skip-connections=1"], "--max-skip-connections: needs --derivation argm"),
        (["--alpha-warmup=50"], "--alpha-warmup 50: must be less than --epochs, 50"),
    ],
)
def test_methods_that_do_not_go_together(flags, sentence):
    with pytest.raises(InputError, match=sentence):
        parse(SearchConfig, flags)
