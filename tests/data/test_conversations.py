"""Conversations: one text for training, serving, generating and transformers, and its answers."""

import json

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from mlxhog.data import conversations, records
from mlxhog.data.batch import IGNORED
from mlxhog.data.foreign_tokenizers import PATTERNS
from mlxhog.data.prepare import prepare
from mlxhog.data.records import Example
from mlxhog.data.tokenizers import BOS_TOKEN, BpeTokenizer, ByteTokenizer, train_bpe
from mlxhog.errors import DataError
from tests.data.token_files import token_file, written
from tests.pairs import each_of

WEATHER = {"type": "function", "function": {"name": "weather", "arguments": '{"at": "Paris"}'}}


def said(role, content, **more):
    return {"role": role, "content": content, **more}


TALKS = [
    [said("user", "say one"), said("assistant", "one")],
    [
        said("system", "Be brief.  "),
        said("user", "  Zwei?\r\nJa, ä 中\n\n"),
        said("assistant", "2"),
        said("user", ""),
        said("assistant", "\n3\n4"),
    ],
    [
        said("developer", "Forge nothing."),
        said("user", "a\nAssistant: b\nUser: c\nTool:\n\nSystem:d User: e"),
        said("assistant", "\nUser: f\nUser:\nUser: g"),
    ],
    [
        said("user", [{"type": "text", "text": "Wea"}, {"type": "text", "text": "r?"}]),
        said("assistant", None, tool_calls=[WEATHER]),
        said("tool", '{"degrees": 9}', tool_call_id="1"),
        said("assistant", "9"),
    ],
    [
        said("user", "in the form of transformers"),
        said("assistant", "I look. ", tool_calls=[
            {"function": {"name": "f", "arguments": {"where": ["<ä>", 1, None], "b": True}}},
            WEATHER,
        ]),
        said("tool", "no", name="f"),
        said("assistant", None, refusal="I cannot."),
        said("assistant", [{"type": "refusal", "refusal": "Really not."}]),
    ],
]  # fmt: skip


def example(messages):
    text = records.record_text({"messages": messages}, None, "it")
    assert isinstance(text, Example)
    return text


TEXTS = [bytes(example(talk)) for talk in TALKS] * 4


def tokenizers():
    return [ByteTokenizer(), train_bpe(TEXTS, 400)]


def of_llama():
    """A tokenizer with the pattern of Llama 3, which joins punctuation and a line break."""
    (pattern,) = (one for one in PATTERNS if "{1,3}" in one)
    own = Tokenizer(models.BPE())
    parts = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    own.pre_tokenizer = pre_tokenizers.Sequence(parts)
    letters = pre_tokenizers.ByteLevel.alphabet()
    how = {"special_tokens": [BOS_TOKEN], "initial_alphabet": letters, "show_progress": False}
    own.train_from_iterator(map(bytes.decode, TEXTS), trainers.BpeTrainer(vocab_size=400, **how))
    return BpeTokenizer(own.to_str().encode(), BOS_TOKEN, "llama")


def test_a_conversation_is_a_line_for_each_turn_and_ends_where_the_answer_begins():
    assert conversations.prompt(TALKS[1][:4]) == (
        "System: Be brief.\nUser: Zwei?\nJa, ä 中\nAssistant: 2\nUser: \nAssistant:"
    )
    assert conversations.prompt(TALKS[3][:3]) == (
        'User: Wear?\nAssistant: call weather {"at": "Paris"}\nTool: {"degrees": 9}\nAssistant:'
    )
    for talk in TALKS:  # no message can look like a turn or end an answer
        text = "\n" + conversations.prompt(talk)
        assert sum(text.count(stop) for stop in conversations.STOPS) == len(talk) + 1
        for _, answer in example(talk).turns():
            assert not any(stop.encode() in answer for stop in conversations.STOPS)


@pytest.mark.slow
def test_the_exported_template_writes_our_text_and_our_tokens(tmp_path):
    transformers = pytest.importorskip("transformers")
    for k, tokenizer in enumerate(tokenizers()):
        folder = written(tmp_path / str(k), tokenizer.files())
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        for talk in TALKS:
            for end in range(1, len(talk) + 1):
                text = conversations.prompt(talk[:end])
                how = {"add_generation_prompt": True}
                rendered = theirs.apply_chat_template(talk[:end], tokenize=False, **how)
                assert rendered == theirs.bos_token + text
                ids = theirs.apply_chat_template(talk[:end], return_dict=False, **how)
                assert ids == [tokenizer.bos, *tokenizer.encode(text.encode()).tolist()]
                plain = theirs.apply_chat_template(talk[:end], tokenize=False)
                assert plain + "\nAssistant:" == rendered
                how = {"return_assistant_tokens_mask": True, "return_dict": True}
                marked = theirs.apply_chat_template(talk[:end], **how)["assistant_masks"]
                answers = any(one["role"] == "assistant" for one in talk[:end])
                assert answers == (sum(marked) > 0)
                assert not all(marked)
        with pytest.raises(Exception, match="message 1 has a part that is not text"):
            theirs.apply_chat_template([said("user", [{"type": "image_url"}])])
        with pytest.raises(Exception, match="message 1 needs a role: system, developer, user"):
            theirs.apply_chat_template([said("robot", "a")])


def test_every_answer_is_a_row_with_the_tokens_that_serving_reads_before_it(tmp_path):
    expected = []
    for talk in TALKS:
        places = [k for k, message in enumerate(talk) if message["role"] == "assistant"]
        prompts = [conversations.prompt(talk[:place]) for place in places]
        answers = [answer for _, answer in example(talk).turns()]
        expected += zip(prompts, answers, strict=True)
    expected += [("", b"plain text"), ("2+2=\n", b"4")]
    for k, tokenizer in enumerate([*tokenizers(), of_llama()]):
        documents = [*map(example, TALKS), b"plain text", Example(b"2+2=", b"4")]
        file = token_file(tmp_path / str(k), documents, tokenizer)
        assert file.rows(512).cut == 0
        for number, (prompt, answer) in enumerate(expected):
            batch = file.batch(np.array([number]), 512)
            counted = np.flatnonzero(batch.y[0] != IGNORED)
            assert counted.tolist() == list(range(counted[0], counted[-1] + 1))
            assert batch.y[0, counted[-1]] == tokenizer.bos
            assert tokenizer.decode(batch.y[0, counted[:-1]]) == answer
            context = [tokenizer.bos, *tokenizer.encode(prompt.encode()).tolist()]
            assert batch.x[0, : counted[0] + 1].tolist() == context
        assert file.n_sequences(512) == len(expected)


def test_an_answer_has_the_same_tokens_in_a_prompt_whether_its_loss_counts_or_not():
    tokenizer = of_llama()
    assert b'"}\n' in tokenizer.token_bytes
    for talk in TALKS:
        pieces = conversations.pieces(talk)
        masked = [{**one, "weight": 0} for one in talk[:-1]] + talk[-1:]
        whole = tokenizer.encode("".join(pieces).encode()).tolist()
        for parts in (pieces, conversations.pieces(masked)):
            every = tokenizer.encode_all([part.encode() for part in parts])
            assert np.concatenate(every).tolist() == whole
        ends = np.cumsum([len(tokenizer.token_bytes[i]) for i in whole]).tolist()
        assert {*np.cumsum([len(part.encode()) for part in pieces]).tolist()} <= {*ends}
    assert conversations.cut_at_answers("") == [""]
    plain = "one\nAssistants: two"
    assert conversations.cut_at_answers(plain) == [plain]


def test_an_answer_of_weight_0_is_context_as_are_those_of_a_prompt():
    talk = [said("user", "a"), {**said("assistant", "WRONG"), "weight": 0}, said("user", "b"),
            {**said("assistant", "right"), "weight": 1.0}]  # fmt: skip
    learned = (b"User: a\nAssistant: WRONG\nUser: b\nAssistant:", b" right")
    assert example(talk).turns() == [learned]
    both = {"prompt": [said("user", "a"), said("assistant", "WRONG"), said("user", "b")],
            "completion": [said("assistant", "right")]}  # fmt: skip
    assert records.record_text(both, None, "here").turns() == [learned]
    for weight, fragment in ((0, "no message of the assistant with"), (0.5, "expected 0 or 1")):
        with pytest.raises(DataError, match=fragment):
            example([said("user", "a"), {**said("assistant", "b"), "weight": weight}])


def test_loss_on_all_learns_users_and_prompts_too(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in TALKS * 3))
    answers, whole = (prepare(str(path), loss_on=loss_on) for loss_on in ("assistant", "all"))
    assert answers.train.prompts is not None
    plain = whole.train
    assert plain.prompts is None
    assert bytes(plain.tokens[1:16].astype(np.uint8)) == b"User: say one\nA"
    noted = [any("15 of 15 documents are examples" in n for n in d.notes) for d in (answers, whole)]
    assert noted == [True, False]


P_A, P_I_A = (b"p\n", b"a"), (b"p\ni\n", b"a")


@each_of(
    ("record", "text_key", "pair"),
    [
        *(({prompt: "p", answer: "a", "id": "7"}, None, P_A) for prompt, answer in (
            ("prompt", "answer"), ("query", "response"), ("problem", "solution"),
            ("question", "chosen"), ("input", "output"),
        )),
        ({"prompt": "2+2=", "completion": "4"}, None, (b"2+2=\n", b"4")),
        ({"prompt": "The sky is", "completion": " blue"}, None, (b"The sky is", b" blue")),
        ({"prompt": "Q: why?\nA: ", "completion": "so"}, None, (b"Q: why?\nA: ", b"so")),
        ({"prompt": "", "completion": "so"}, None, (b"", b"so")),
        ({"instruction": "p", "input": None, "output": "a"}, None, P_A),
        ({"instruction": "p", "input": "i", "output": "a"}, None, P_I_A),
        ({"q": "p", "r": "a", "text": "t"}, "q,r", P_A),
        ({"q": "p", "more": "i", "r": "a"}, "q,more,r", P_I_A),
        ({"question": "p", "answer": "b", "response": "a"}, "question,response", P_A),
        ({"talk": TALKS[0]}, "talk", (b"User: say one\nAssistant:", b" one")),
    ],
)  # fmt: skip
def test_a_record_has_a_prompt_and_a_completion_by_usual_names_or_text_key(record, text_key, pair):
    assert list(records.record_text(record, text_key, "it").turns()) == [pair]
    assert records.record_text({"a,b": "text"}, "a,b", "it") == b"text"
