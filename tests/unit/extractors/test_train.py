"""The training loop: what it optimises, what it keeps, how it goes on, how it stops."""

import json
import pickle
import sys
from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, DataError, MissingExtra, ModelError, ShapeError, TokenError
from vqcortex.extractors.protocol import build_extractor, look_up
from vqcortex.extractors.train import (
    LOOK_EVERY,
    Callbacks,
    TrainData,
    TrainReport,
    TrainSettings,
    listen,
    minibatches,
    rate_of,
    train_extractor,
)

TOY = ToyAdapter(grid=(2, 3))
QUICK = TrainSettings(epochs=4, minibatch=16, seed=3)


def toy_data(images=80, held_out=40):
    labels = torch.arange(images + held_out) % 8
    tokens = TOY.generate(labels, [str(i) for i in range(images + held_out)], 0).to(torch.uint8)
    return TrainData(
        tokens=tokens[:images], labels=labels[:images],
        validation_tokens=tokens[images:], validation_labels=labels[images:],
    )  # fmt: skip


DATA = toy_data()


def fresh(seed=0):
    return build_extractor("conv8", 3, (2, 3), 8, seed, width=8, depth=2, hidden=(16,))


def weights(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def finished():
    module, epochs, steps = fresh(), [], []
    report = train_extractor(
        module, DATA, QUICK, TOY.codebook, on_epoch=epochs.append, on_step=lambda *one: steps.append(one)
    )
    return module, report, epochs, steps


def test_every_epoch_and_step_is_told(finished):
    _, report, epochs, steps = finished
    assert tuple(epochs) == report.epochs
    assert [one.epoch for one in epochs] == [1, 2, 3, 4]
    assert {one.epochs for one in epochs} == {4}
    assert steps == [(epoch, step, 5) for epoch in range(1, 5) for step in range(1, 6)]
    assert (report.stopped, report.resumed_after) == ("epochs", 0)


def test_the_module_ends_with_the_weights_of_the_epoch_of_lowest_validation_loss(finished):
    module, report, *_ = finished
    losses = [one.validation_loss for one in report.epochs]
    assert losses[report.best - 1] == min(losses)
    assert [one.is_best for one in report.epochs] == [loss < min([9, *losses[:i]]) for i, loss in enumerate(losses)]
    logits = module(look_up(TOY.codebook, DATA.validation_tokens))
    assert not module.training
    assert F.cross_entropy(logits, DATA.validation_labels).item() == pytest.approx(min(losses), rel=1e-5)
    accuracy = (logits.argmax(1) == DATA.validation_labels).float().mean().item()
    assert accuracy == pytest.approx(report.epochs[report.best - 1].validation_accuracy)


def test_it_learns(finished):
    losses = [one.train_loss for one in finished[1].epochs]
    assert losses[-1] < losses[0]


def test_the_same_run_gives_the_same_bits_and_leaves_torch_alone(finished):
    module = fresh()
    before = torch.get_rng_state()
    report = train_extractor(module, DATA, QUICK, TOY.codebook)
    assert torch.equal(torch.get_rng_state(), before)
    assert report == finished[1]
    assert_same_bits(weights(module), weights(finished[0]))


def test_another_seed_gives_another_run(finished):
    module = fresh()
    train_extractor(module, DATA, replace(QUICK, seed=4), TOY.codebook)
    assert not torch.equal(module.head.weight, finished[0].head.weight)


def test_the_integer_type_of_the_tokens_changes_nothing(finished):
    module = fresh()
    wide = replace(DATA, tokens=DATA.tokens.long(), validation_tokens=DATA.validation_tokens.to(torch.uint16))
    train_extractor(module, wide, QUICK, TOY.codebook)
    assert_same_bits(weights(module), weights(finished[0]))


class Killed(Exception):
    """What a test throws from a callback."""


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_run_killed_after_any_epoch_ends_with_the_same_bits(finished, tmp_path, last):
    def kill(report):
        if report.epoch == last:
            raise Killed("by the test")

    with pytest.raises(Killed, match="by the test"):
        train_extractor(fresh(), DATA, QUICK, TOY.codebook, tmp_path / "run.pt", on_epoch=kill)
    module = fresh()
    report = train_extractor(module, DATA, QUICK, TOY.codebook, tmp_path / "run.pt")
    assert report == replace(finished[1], resumed_after=last)
    assert_same_bits(weights(module), weights(finished[0]))


def test_a_run_killed_inside_an_epoch_repeats_that_epoch(finished, tmp_path):
    def kill(epoch, step, steps):
        if (epoch, step) == (3, 2):
            raise Killed("by the test")

    with pytest.raises(Killed, match="by the test"):
        train_extractor(fresh(), DATA, QUICK, TOY.codebook, tmp_path / "run.pt", on_step=kill)
    module = fresh()
    assert train_extractor(module, DATA, QUICK, TOY.codebook, tmp_path / "run.pt").resumed_after == 2
    assert_same_bits(weights(module), weights(finished[0]))


def test_a_finished_run_is_not_repeated_and_more_epochs_go_on_from_it(finished, tmp_path):
    for expected in (0, 2):
        module = fresh()
        report = train_extractor(module, DATA, replace(QUICK, epochs=2), TOY.codebook, tmp_path / "run.pt")
        assert (report.resumed_after, len(report.epochs)) == (expected, 2)
    module = fresh()
    report = train_extractor(module, DATA, QUICK, TOY.codebook, tmp_path / "run.pt")
    assert report == replace(finished[1], resumed_after=2)
    assert_same_bits(weights(module), weights(finished[0]))


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("training settings", {"settings": replace(QUICK, rate=0.01)}),
        ("initial weights", {"module": fresh(seed=1)}),
        ("images", {"data": toy_data(images=72)}),
        ("codebook", {"codebook": TOY.codebook + 1}),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, what, change):
    same = {"module": fresh(), "data": DATA, "settings": QUICK, "codebook": TOY.codebook}
    train_extractor(**{**same, "settings": replace(QUICK, epochs=1)}, checkpoint=tmp_path / "run.pt")
    kept = (tmp_path / "run.pt").read_bytes()
    with pytest.raises(ConfigError, match=f"belongs to another run: {what} differ; repeat"):
        train_extractor(**{**same, "module": fresh(), **change}, checkpoint=tmp_path / "run.pt")
    assert (tmp_path / "run.pt").read_bytes() == kept


def test_a_torn_checkpoint_is_refused(tmp_path):
    (tmp_path / "run.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match=r"no readable training checkpoint .* delete it to train from the start"):
        train_extractor(fresh(), DATA, QUICK, TOY.codebook, tmp_path / "run.pt")


def test_patience_stops_early():
    settings = replace(QUICK, epochs=60, patience=2, rate=0.5)
    report = train_extractor(fresh(), DATA, settings, TOY.codebook)
    assert report.stopped == "patience"
    assert len(report.epochs) == report.best + 2


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_state(tmp_path):
    class Breaks:
        def __init__(self, module):
            self.module = module

        def __call__(self, report):
            if report.epoch == 2:
                torch.nn.init.constant_(self.module.head.weight, float("nan"))

    module = fresh()
    with pytest.raises(
        ModelError, match=r"(?s)became nan at epoch 3, step 1; the state after epoch 2 is kept in '.*run"
    ):
        train_extractor(module, DATA, QUICK, TOY.codebook, tmp_path / "run.pt", on_epoch=Breaks(module))
    report = train_extractor(fresh(), DATA, QUICK, TOY.codebook, tmp_path / "run.pt")
    assert report.resumed_after == 2


def test_a_rate_far_too_high_is_named():
    with pytest.raises(ModelError, match=r"became (nan|inf).*lower rate=1e\+30"):
        train_extractor(fresh(), DATA, replace(QUICK, rate=1e30), TOY.codebook)


def test_the_first_bad_step_is_found_between_two_looks():
    data = toy_data(images=2 * LOOK_EVERY * 2)
    module = fresh()

    def spoil(epoch, step, steps):
        if step == LOOK_EVERY + 3:
            torch.nn.init.constant_(module.head.weight, float("nan"))

    with pytest.raises(ModelError, match=f"epoch 1, step {LOOK_EVERY + 4}; no earlier state was kept"):
        train_extractor(module, data, replace(QUICK, minibatch=2), TOY.codebook, on_step=spoil)


def test_minibatches_hold_every_image_once_and_never_a_single_one():
    for images, size in ((80, 16), (65, 16), (3, 2), (2, 512), (17, 16), (5, 2)):
        parts = minibatches(images, replace(QUICK, minibatch=size), 1)
        assert sorted(torch.cat(parts).tolist()) == list(range(images))
        assert min(len(part) for part in parts) >= 2
        assert max(len(part) for part in parts) <= max(size + 1, 3)


def test_the_order_of_images_depends_on_seed_and_epoch_alone():
    order = lambda **changed: torch.cat(minibatches(30, replace(QUICK, **changed), 1)).tolist()  # noqa: E731
    assert order() == order(minibatch=7)
    assert order() != order(seed=9)
    assert order() != torch.cat(minibatches(30, QUICK, 2)).tolist()


def test_the_rate_falls_in_steps():
    settings = TrainSettings()
    assert [rate_of(settings, epoch) for epoch in (1, 20, 21, 80)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-6])


def test_a_hand_written_loop_reaches_the_same_weights():
    settings = replace(QUICK, epochs=2, minibatch=40, step_every=1)
    ours, slow = fresh(), fresh()
    for module in (ours, slow):
        module.hidden[0].drop.p = 0.0
    losses = [one.validation_loss for one in train_extractor(ours, DATA, settings, TOY.codebook).epochs]
    optimizer = torch.optim.Adam(slow.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    for epoch in (1, 2):
        slow.train()
        for part in minibatches(80, settings, epoch):
            embedded = torch.stack([TOY.embed(DATA.tokens[i : i + 1].long())[0] for i in part.tolist()])
            optimizer.zero_grad()
            F.cross_entropy(slow(embedded), DATA.labels[part]).backward()
            optimizer.step()
        schedule.step()
        embedded = TOY.embed(DATA.validation_tokens.long())
        assert losses[epoch - 1] == pytest.approx(
            F.cross_entropy(slow.eval()(embedded), DATA.validation_labels).item(), rel=1e-5
        )


def test_bf16_trains():
    report = train_extractor(fresh(), DATA, replace(QUICK, precision="bf16-mixed"), TOY.codebook)
    assert report.epochs[-1].train_loss < report.epochs[0].train_loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0, "minibatch": 1}, r"2 training setting\(s\) wrong:\n  - epochs=0 must .*\n  - minibatch=1 must"),
        ({"rate": 0.0}, "rate=0.0 must be above 0"),
        ({"rate": float("nan")}, "rate=nan must be above 0"),
        ({"step_factor": 2.0}, r"step_factor=2.0 must lie in \(0, 1\]"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 must lie in"),
        ({"patience": 0}, "patience=0 must be at least 1, or None"),
        ({"precision": "16-mixed"}, "precision='16-mixed' needs device cuda, not 'cpu'"),
        ({"device": "cuda:0", "devices": 2}, "names one device but devices=2"),
    ],
)
def test_wrong_settings_are_listed(change, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        train_extractor(fresh(), DATA, replace(QUICK, **change), TOY.codebook)


def test_an_unknown_precision_is_named():
    settings = replace(QUICK)
    object.__setattr__(settings, "precision", "8-bit")  # as from a file, past the type checker
    with pytest.raises(ConfigError, match="precision='8-bit' must be one of 32-true, bf16-mixed, 16-mixed"):
        settings.checked()


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="device='tpu'"):
        train_extractor(fresh(), DATA, replace(QUICK, device="tpu"), TOY.codebook)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": DATA.tokens[:1], "labels": DATA.labels[:1]}, DataError, "1 training grids with 1 labels; at least"),
        ({"validation_tokens": DATA.validation_tokens[:0], "validation_labels": DATA.validation_labels[:0]},
         DataError, "0 validation grids"),
        ({"tokens": DATA.tokens[:, :, :2], "validation_tokens": DATA.validation_tokens[:, :, :2]}, ShapeError,
         r"\(80, 2, 2\) but the extractor reads grids of \(2, 3\)"),
        ({"tokens": DATA.tokens + 1}, TokenError, r"training tokens span \[1, 8\] but this codebook holds .* \[0, 7\]"),
        ({"labels": DATA.labels + 1}, DataError, r"training labels span \[1, 8\] .* concepts \[0, 7\]"),
    ],
)  # fmt: skip
def test_wrong_data_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        train_extractor(fresh(), replace(DATA, **change), QUICK, TOY.codebook)


def test_a_log_needs_a_checkpoint():
    with pytest.raises(ConfigError, match="tensorboard=True writes beside the checkpoint"):
        train_extractor(fresh(), DATA, replace(QUICK, tensorboard=True), TOY.codebook)


def test_a_log_is_written(tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    train_extractor(fresh(), DATA, replace(QUICK, epochs=1, tensorboard=True), TOY.codebook, tmp_path / "run.pt")
    assert [path for path in (tmp_path / "tensorboard").iterdir() if "tfevents" in path.name]


@pytest.mark.parametrize(
    ("hidden", "settings", "message"),
    [
        ("lightning.fabric", QUICK, "training needs lightning"),
        ("torch.utils.tensorboard", replace(QUICK, tensorboard=True), r"needs tensorboard; .*vqcortex\[tensorboard\]"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, tmp_path, hidden, settings, message):
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(MissingExtra, match=message):
        train_extractor(fresh(), DATA, settings, TOY.codebook, tmp_path / "run.pt")


@pytest.mark.slow
def test_two_processes_share_every_minibatch(tmp_path, capfd):
    module, told = fresh(), []
    settings = replace(QUICK, epochs=2, devices=2)
    report = train_extractor(module, DATA, settings, TOY.codebook, tmp_path / "run.pt", on_epoch=told.append)
    assert tuple(told) == report.epochs
    assert (tmp_path / "run.pt").is_file()
    logits = module(look_up(TOY.codebook, DATA.validation_tokens))
    best = report.epochs[report.best - 1].validation_loss
    assert F.cross_entropy(logits, DATA.validation_labels).item() == pytest.approx(best, rel=1e-5)
    assert capfd.readouterr().out == ""


class Heard:
    """The end of a pipe through which another process said something and then ended."""

    def __init__(self, *words):
        self.words = [word if isinstance(word, bytes) else json.dumps(word).encode() for word in words]

    def recv_bytes(self):
        if not self.words:
            raise EOFError
        return self.words.pop(0)


def test_what_another_process_reports_is_passed_on(finished):
    epochs, steps, heard = [], [], []
    report = finished[1]
    callbacks = Callbacks(epochs.append, lambda *one: steps.append(one))
    listen(Heard(["step", [1, 1, 5]], ["epoch", asdict(report.epochs[0])], ["end", asdict(report)]), callbacks, heard)
    assert (epochs, steps, heard) == ([report.epochs[0]], [(1, 1, 5)], [report])


def test_a_callback_that_raises_does_not_leave_the_other_process_waiting(finished):
    calls, heard = [], []

    def breaks(*step):
        calls.append(step)
        raise Killed("by the test")

    pipe = Heard(["step", [1, 1, 5]], ["step", [1, 2, 5]], ["end", asdict(finished[1])])
    listen(pipe, Callbacks(None, breaks), heard)
    assert calls == [(1, 1, 5)]
    assert [type(one) for one in heard] == [Killed, TrainReport]
    assert pipe.words == []


def test_an_error_of_another_process_is_the_same_error_here():
    heard = []
    listen(Heard(["error", ["ModelError", "the loss became nan"]]), Callbacks(None, None), heard)
    assert [(type(one), str(one)) for one in heard] == [(ModelError, "the loss became nan")]


def test_what_another_process_sends_is_never_unpickled():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    heard = []
    listen(Heard(pickle.dumps(Trap()), ["step", [1, 1, 5]]), Callbacks(None, None), heard)
    assert [type(one) for one in heard] == [UnicodeDecodeError]


@pytest.mark.slow
def test_an_error_in_one_of_two_processes_comes_back_as_itself(tmp_path):
    settings = replace(QUICK, epochs=1, devices=2, rate=1e30)
    with pytest.raises(ModelError, match="became nan"):
        train_extractor(fresh(), DATA, settings, TOY.codebook)
