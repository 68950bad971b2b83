"""A run on conversations: its model answers, and ends its answers where their turns end."""

import json

import pytest

import mlxhog
from mlxhog import train
from mlxhog.data import conversations
from tests.training.small import Messages, small_config

TALK = [{"role": "user", "content": "say one"}, {"role": "assistant", "content": "one"}]


@pytest.mark.slow
def test_a_run_on_one_conversation_answers_it_and_exports_its_template(tmp_path):
    data = tmp_path / "chat.jsonl"
    data.write_text(json.dumps({"messages": TALK * 2}) + "\n")
    notes = Messages()
    config = small_config(tmp_path, data=str(data), steps=80, context="trained", lr=0.01)
    result = train(config, observer=notes)
    assert any("evaluations are of the training text" in note for note in notes)
    assert "training examples" in (result.val_text or "")
    with mlxhog.load(result.run) as model:
        for messages in (TALK[:1], [*TALK, *TALK[:1]]):
            text = model.generate(
                conversations.prompt(messages),
                stop=conversations.STOPS,
                temperature=0.0,
                max_new_tokens=50,
            )
            assert text == " one"
    template = (tmp_path / result.run / "model" / "chat_template.jinja").read_text()
    assert template == conversations.TEMPLATE
