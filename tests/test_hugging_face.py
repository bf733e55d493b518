"""transformers' own trainer: its models become smaller in the run, are written and read again."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

from ssl_lightning import Inputs, load_compact, save_compact
from ssl_lightning.compaction.modules import ZeroLinear
from ssl_lightning.measure import count_macs, num_parameters

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from ssl_lightning.hugging_face import SparsityCallback  # noqa: E402

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SMALL |= {"num_attention_heads": 4}
TEXT = {**SMALL, "vocab_size": 24, "max_position_embeddings": 32}
LENGTH, NUMBER = 12, 64


class Examples(torch.utils.data.Dataset):
    """Examples in memory, each a mapping of tensors."""

    def __init__(self, **columns: torch.Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return NUMBER

    def __getitem__(self, i: int | slice) -> dict[str, torch.Tensor]:
        return {name: column[i] for name, column in self.columns.items()}


def counting() -> torch.Tensor:
    """Made text in which every token is the sum of the two before, modulo five."""
    tokens = torch.randint(0, 5, (NUMBER, LENGTH), generator=torch.Generator().manual_seed(0))
    for i in range(2, LENGTH):
        tokens[:, i] = (tokens[:, i - 1] + tokens[:, i - 2]) % 5
    return tokens


def llama():
    """Two query heads to each head of keys and values."""
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config), Examples(input_ids=counting(), labels=counting())


def bert():
    config = transformers.BertConfig(**TEXT, num_labels=3)
    text = counting()
    examples = Examples(
        input_ids=text, attention_mask=torch.ones_like(text), labels=text[:, 0] // 2
    )
    return transformers.BertForSequenceClassification(config), examples


def vit():
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=2)
    images = torch.randn(NUMBER, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    examples = Examples(pixel_values=images, labels=(images.mean((1, 2, 3)) > 0).long())
    return transformers.ViTForImageClassification(config), examples


MODELS = {f.__name__: f for f in (llama, bert, vit)}


def trainer_of(model, examples, folder, callback, **settings):
    arguments = transformers.TrainingArguments(
        str(folder),
        **{
            "max_steps": 16,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "save_steps": 12,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 0,
            **settings,
        },
    )
    callbacks = [] if callback is None else [callback]
    return transformers.Trainer(
        model, arguments, train_dataset=examples, eval_dataset=examples, callbacks=callbacks
    )


def made(name):
    torch.manual_seed(0)
    return MODELS[name]()


def macs(model, examples):
    inputs = {k: v[:1] for k, v in examples.columns.items() if k != "labels"}
    known = inspect.signature(type(model).forward).parameters
    cache = {"use_cache": False} if "use_cache" in known else {}
    return count_macs(model, Inputs(**inputs, **cache))


@torch.no_grad()
def outputs(model, examples):
    model.eval()
    return model(**{k: v[:4] for k, v in examples.columns.items() if k != "labels"}).logits


@pytest.mark.parametrize("name", MODELS)
def test_whole_blocks_go(name, tmp_path):
    """Depth groups: an attention or feed-forward part leaves the model as a whole."""
    model, examples = made(name)
    callback = SparsityCallback(macs=0.7, groups=["depth"], at=0.5)
    trainer = trainer_of(model, examples, tmp_path, callback)
    before = macs(model, examples)
    trainer.train()
    assert macs(model, examples) <= 0.7 * before
    gone = [n for n, m in model.named_modules() if type(m) is ZeroLinear]
    ends = [n for n in gone if n.endswith(("o_proj", "down_proj", "output.dense"))]
    assert ends, gone
    whole = [n for n in gone if n.endswith(("q_proj", "gate_proj", "query", "intermediate.dense"))]
    assert len(whole) >= len(ends), "what led there went with it"
    save_compact(tmp_path / "small", model, callback.plans)
    again = load_compact(tmp_path / "small")
    assert torch.equal(outputs(again, examples), outputs(model, examples))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("budget", [{"macs": 0.6}, {"parameters": 0.6}], ids=str)
def test_the_model_becomes_smaller_and_every_checkpoint_is_read_again(tmp_path, name, budget):
    model, examples = made(name)
    before, callback = num_parameters(model), SparsityCallback(**budget)
    trainer = trainer_of(model, examples, tmp_path, callback)
    trainer.train()
    assert trainer.model is model
    assert len(callback.plans) == 1
    if "parameters" in budget:
        assert 0.5 < num_parameters(model) / before <= 0.6
    else:
        assert 0.5 < macs(model, examples) / macs(made(name)[0], examples) <= 0.6
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    last = load_compact(tmp_path / "checkpoint-16")
    assert type(last) is type(model)
    torch.testing.assert_close(outputs(last, examples), outputs(model, examples))
    folder = save_compact(tmp_path / "small", model, callback.plans)
    assert torch.equal(outputs(load_compact(folder), examples), outputs(last, examples))
    early = load_compact(tmp_path / "checkpoint-12")
    assert num_parameters(early) == num_parameters(model)


def test_what_is_left_learns_on(tmp_path):
    """Perplexity of made text rises when groups go, and falls back in the run."""
    model, examples = made("llama")
    trainer_of(model, examples, tmp_path, None, max_steps=160, save_strategy="no").train()

    def perplexity():
        model.eval()
        with torch.no_grad():
            return float(model(**examples[:]).loss.exp())

    trained, found = perplexity(), {}
    for steps in (2, 160):
        model, examples = made("llama")
        trainer_of(model, examples, tmp_path, None, max_steps=160, save_strategy="no").train()
        callback = SparsityCallback(parameters=0.35)
        trainer_of(model, examples, tmp_path, callback, max_steps=steps, save_strategy="no").train()
        found[steps] = perplexity()
    assert trained < 1.8
    assert found[160] < 1.1 * trained < 1.3 * trained < found[2]


def test_a_resumed_run_is_the_whole_one(tmp_path):
    weights = []
    for part in ("whole", "resumed"):
        model, examples = made("llama")
        callback, resume = SparsityCallback(parameters=0.6), None
        if part == "resumed":
            resume = str(tmp_path / "whole" / "checkpoint-12")
            model = load_compact(resume)
        trainer = trainer_of(model, examples, tmp_path / part, callback)
        trainer.train(resume_from_checkpoint=resume)
        weights.append(trainer.model.state_dict())
        assert trainer.state.global_step == 16
        assert len(callback.plans) == 1
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    state = json.loads((tmp_path / "resumed/checkpoint-16/trainer_state.json").read_text())
    assert state["stateful_callbacks"]["SparsityCallback"]["attributes"]["plans"]


def test_without_a_callback_training_is_the_same_until_the_budget_is_reached(tmp_path):
    losses = []
    for callback in (None, SparsityCallback(parameters=0.6, at=0.5)):
        model, examples = made("llama")
        settings = {"logging_steps": 1, "save_strategy": "no"}
        trainer = trainer_of(model, examples, tmp_path, callback, **settings)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0][:8] == losses[1][:8]
    assert losses[0][15:] != losses[1][15:]


def test_penalties_act_until_then(tmp_path):
    norms = {}
    for strength in (0.0, 0.5):
        model, examples = made("bert")
        penalties = [{"kind": "ffn", "strength": strength}] if strength else None
        callback = SparsityCallback(parameters=0.9, at=0.8, penalties=penalties)
        trainer_of(model, examples, tmp_path, callback, save_strategy="no").train()
        weights = [p for n, p in model.named_parameters() if "intermediate.dense.weight" in n]
        norms[strength] = sum(weight.detach().norm().item() for weight in weights)
        assert callback._attachment is None
    assert norms[0.5] < 0.8 * norms[0.0]


def test_accumulated_gradients_and_mixed_precision(tmp_path):
    model, examples = made("llama")
    callback = SparsityCallback(parameters=0.6)
    settings = {"gradient_accumulation_steps": 2, "bf16": True, "save_strategy": "no"}
    trainer_of(model, examples, tmp_path, callback, max_steps=4, **settings).train()
    assert len(callback.plans) == 1
    folder = save_compact(tmp_path / "small", model, callback.plans)
    torch.testing.assert_close(
        outputs(load_compact(folder), examples), outputs(model, examples), atol=0.05, rtol=0.05
    )


def test_a_short_run_reaches_the_budget_before_its_last_step(tmp_path):
    model, examples = made("vit")
    callback = SparsityCallback(parameters=0.8)
    trainer_of(model, examples, tmp_path, callback, max_steps=2, save_strategy="no").train()
    assert len(callback.plans) == 1


def test_a_run_that_is_too_short_says_so(tmp_path):
    model, examples = made("vit")
    callback = SparsityCallback(parameters=0.8)
    trainer = trainer_of(model, examples, tmp_path, callback, max_steps=1, save_strategy="no")
    with pytest.warns(UserWarning, match="the run ended after 1 steps, before .*parameters"):
        trainer.train()


WRONG = {
    "no budget": ({}, {}, "such as macs=0.5, got none"),
    "late": ({"macs": 0.5, "at": 1.0}, {}, "at least 0 and below 1, got 1.0"),
    "unknown": ({"flops": 0.5}, {}, "in some of macs, parameters, size, .* got flops"),
    "negative": ({"macs": -1}, {}, "expected macs as a positive number"),
    "importance": ({"macs": 0.5, "importance": "l3"}, {}, "Unknown importance 'l3'"),
    "group": ({"macs": 0.5, "groups": ["ffm"]}, {}, "Unknown group kind 'ffm'.*ffn"),
    "optimizer": ({"macs": 0.5}, {"optim": "adafactor"}, "The state of Adafactor"),
    "compiled": ({"macs": 0.5}, {"torch_compile": True}, "needs one process, one device"),
    "unreachable": ({"parameters": 0.01}, {}, "cannot be reached"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_done_is_refused(tmp_path, case):
    given, settings, message = WRONG[case]
    model, examples = made("vit")
    before = {name: p.shape for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        trainer_of(model, examples, tmp_path, SparsityCallback(**given), **settings).train()
    assert {name: p.shape for name, p in model.named_parameters()} == before


def parameters_left(model, folder, callback, examples, **settings):
    trainer_of(model, examples, folder, callback, **settings).train()
    return num_parameters(model)


def test_a_callback_serves_one_model_after_the_other(tmp_path):
    callback = SparsityCallback(parameters=0.6)
    left = [
        parameters_left(model, tmp_path / name, callback, examples)
        for name in ("bert", "vit")
        for model, examples in [made(name)]
    ]
    alone = [
        parameters_left(model, tmp_path / f"{name}1", SparsityCallback(parameters=0.6), examples)
        for name in ("bert", "vit")
        for model, examples in [made(name)]
    ]
    assert left == alone


def test_a_model_that_is_trained_again_is_not_reduced_again(tmp_path):
    model, examples = made("vit")
    callback = SparsityCallback(parameters=0.6)
    trainer = trainer_of(model, examples, tmp_path, callback)
    trainer.train()
    left = num_parameters(model)
    trainer.train()
    assert (num_parameters(model), len(callback.plans)) == (left, 1)


def test_models_are_reduced_step_by_step(tmp_path):
    model, examples = made("llama")
    first = parameters_left(model, tmp_path / "1", SparsityCallback(parameters=0.8), examples)
    again = load_compact(tmp_path / "1" / "checkpoint-16")
    for small, place in ((model, "2"), (again, "3")):
        callback = SparsityCallback(parameters=0.8)
        left = parameters_left(small, tmp_path / place, callback, examples)
        assert left <= 0.8 * first
        assert len(callback.plans) == 2
        last = load_compact(tmp_path / place / "checkpoint-16")
        assert torch.equal(outputs(last, examples), outputs(small, examples))


def test_what_the_trainer_saves_at_the_end_is_read(tmp_path):
    model, examples = made("llama")
    trainer = trainer_of(model, examples, tmp_path, SparsityCallback(parameters=0.6))
    trainer.train()
    trainer.save_model()
    assert torch.equal(outputs(load_compact(tmp_path), examples), outputs(model, examples))


def test_the_best_checkpoint_is_one_of_the_small_model(tmp_path):
    model, examples = made("llama")
    settings = {"eval_strategy": "steps", "eval_steps": 4, "save_steps": 4}
    settings |= {"load_best_model_at_end": True, "learning_rate": 1e-6}
    callback = SparsityCallback(parameters=0.4)
    trainer = trainer_of(model, examples, tmp_path, callback, **settings)
    trainer.train()
    assert num_parameters(model) <= 0.4 * num_parameters(made("llama")[0])
    step = int(trainer.state.best_model_checkpoint.rpartition("-")[2])
    assert step > 8
    best = load_compact(trainer.state.best_model_checkpoint)
    assert torch.equal(outputs(best, examples), outputs(model, examples))


@pytest.mark.parametrize("at", [0.0, 0.25])
def test_runs_resume_from_before_and_after(tmp_path, at):
    model, examples = made("llama")
    settings = {"save_steps": 4}
    whole = SparsityCallback(parameters=0.6, at=at)
    parameters_left(model, tmp_path / "whole", whole, examples, **settings)
    left = num_parameters(model)
    for step in (4, 12, 16):
        place = tmp_path / "whole" / f"checkpoint-{step}"
        small = (place / "plan.json").exists()
        again = load_compact(place) if small else made("llama")[0]
        callback = SparsityCallback(parameters=0.6, at=at)
        trainer = trainer_of(again, examples, tmp_path / f"from-{step}", callback, **settings)
        trainer.train(resume_from_checkpoint=str(place))
        assert callback.landed
        assert num_parameters(again) == pytest.approx(left, rel=0.02)
        if small or step <= at * 16:
            state = model.state_dict()
            assert all(torch.equal(state[k], v) for k, v in again.state_dict().items())


def test_the_trainer_restores_callbacks_if_it_is_asked_to(tmp_path):
    model, examples = made("llama")
    parameters_left(model, tmp_path, SparsityCallback(parameters=0.6), examples)
    place = tmp_path / "checkpoint-12"
    again = load_compact(place)
    settings = {"restore_callback_states_from_checkpoint": True}
    trainer = trainer_of(again, examples, tmp_path, SparsityCallback(parameters=0.5), **settings)
    trainer.train(resume_from_checkpoint=str(place))
    assert torch.equal(outputs(again, examples), outputs(model, examples))


def test_two_callbacks_are_refused(tmp_path):
    model, examples = made("vit")
    trainer = trainer_of(model, examples, tmp_path, SparsityCallback(parameters=0.8))
    trainer.add_callback(SparsityCallback(parameters=0.6))
    with pytest.raises(ValueError, match="expected one in a trainer, got 2"):
        trainer.train()


def multi_query():
    """Heads that share one head of keys and values cannot be removed."""
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config), Examples(input_ids=counting(), labels=counting())


def t5():
    """A decoder that makes its inputs of the labels."""
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                                   vocab_size=24, decoder_start_token_id=0)  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    return model, Examples(input_ids=counting(), labels=counting())


@pytest.mark.parametrize("make", [multi_query, t5])
def test_models_without_heads_to_remove_lose_neurons(tmp_path, make):
    torch.manual_seed(0)
    model, examples = make()
    before = num_parameters(model)
    left = parameters_left(model, tmp_path, SparsityCallback(parameters=0.8), examples)
    assert left <= 0.8 * before
    torch.testing.assert_close(
        load_compact(tmp_path / "checkpoint-16").state_dict(), model.state_dict()
    )


def test_explicit_groups_that_a_model_lacks_are_refused(tmp_path):
    torch.manual_seed(0)
    model, examples = multi_query()
    trainer = trainer_of(model, examples, tmp_path, SparsityCallback(macs=0.8, groups=["head"]))
    with pytest.raises(ValueError, match="Groups of kind 'head'"):
        trainer.train()


@pytest.mark.parametrize("reentrant", [True, False])
def test_activations_that_are_computed_again(tmp_path, reentrant):
    model, examples = made("llama")
    younger = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing_enable" if younger else "gradient_checkpointing_enable"
    getattr(model, name)({"use_reentrant": reentrant})
    parameters_left(model, tmp_path, SparsityCallback(parameters=0.6), examples)
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
    last = load_compact(tmp_path / "checkpoint-16")
    assert torch.equal(outputs(last, examples), outputs(model, examples))


class Note(transformers.TrainerCallback):
    """Notes the attachments of penalties after the steps."""

    def __init__(self, attached, callback):
        self.attached, self.callback = attached, callback

    def on_step_end(self, args, state, control, **kwargs):
        if self.callback._attachment is not None:
            self.attached.append(self.callback._attachment)


def test_penalties_begin_anew_after_a_run_that_was_stopped(tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    model, examples = made("vit")
    penalties = [{"kind": "ffn", "strength": 1e-5}]
    callback = SparsityCallback(parameters=0.9, at=0.9, penalties=penalties)
    trainer = trainer_of(model, examples, tmp_path, callback, save_strategy="no")
    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    left_behind, attached = callback._attachment, []
    assert left_behind is not None
    again = trainer_of(model, examples, tmp_path, callback, save_strategy="no")
    again.add_callback(Note(attached, callback))
    again.train()
    assert callback.landed
    assert attached
    assert left_behind not in attached


def test_a_run_that_is_resumed_too_late_is_refused(tmp_path):
    model, examples = made("vit")
    trainer_of(model, examples, tmp_path, None).train()
    again, _ = made("vit")
    trainer = trainer_of(again, examples, tmp_path, SparsityCallback(macs=0.5), max_steps=18)
    with pytest.raises(ValueError, match=r"at step 16, after at=0\.0, from a checkpoint that"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-16"))
