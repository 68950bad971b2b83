"""Data of machines in text is named, and left out on request; text of people never is."""

import base64
import inspect
import json
import random

from mlxhog.data import machine_data, textfiles
from mlxhog.data.prepare import prepare
from mlxhog.data.records import Example
from tests.data.token_files import text_of, written
from tests.pairs import each_of

RANDOM = random.Random(1)
BYTES = RANDOM.randbytes(600)
BASE64 = base64.b64encode(BYTES).decode()
PEM = f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(BYTES).decode()}-----END CERTIFICATE-----"


def wrapped(text, width, *, begin="", end=""):
    pieces = (text[at : at + width] for at in range(0, len(text), width))
    return "".join(f"{begin}{piece}{end}\n" for piece in pieces)


DATA = {
    "base64": BASE64,
    "base64 for URLs": base64.urlsafe_b64encode(BYTES).decode(),
    "base64 in lines of a mail": wrapped(BASE64, 76).rstrip("\n"),
    "base64 in lines of source code": wrapped(BASE64, 64, begin='    "', end='"').rstrip("\n"),
    "hexadecimal digits": BYTES.hex(),
    "capital hexadecimal digits": BYTES.hex().upper(),
    "a hexadecimal number": "0x" + BYTES.hex(),
    "an image in a page": f"data:image/png;base64,{BASE64}",
    "an image with a character set": f"data:image/svg+xml;charset=utf-8;base64,{BASE64}",
    "a certificate": PEM,
}


@each_of("kind", DATA)
def test_data_of_machines_is_found_whole_and_nothing_beside_it(kind):
    text = f"A picture follows.\n\n{DATA[kind]}\n\nThat was it.\n"
    (rest,) = machine_data.without([text.encode()])
    assert rest.split() == b"A picture follows. That was it.".split()


TEXT = {
    "prose": "The whale swam on, and nobody said a word about the ship that had gone. " * 50,
    "Chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心" * 20,
    "Chinese without marks": "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏" * 40,
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ" * 20,
    "source code": inspect.getsource(textfiles) + inspect.getsource(json.decoder),
    "a table": "| name | number |\n|" + "-" * 200 + "|" + "-" * 200 + "|\n| a | 1 |\n" * 50,
    "rules": ("=" * 120 + "\n" + "_" * 120 + "\n" + "#" * 120 + "\n" + "/" * 120 + "\n") * 5,
    "DNA": "".join(RANDOM.choices("ACGT", k=6000)),
    "DNA in lines": wrapped("".join(RANDOM.choices("ACGTacgtNn", k=6000)), 70),
    "a protein": wrapped("".join(RANDOM.choices("ACDEFGHIKLMNPQRSTVWY", k=3000)), 60),
    "digits": str(3**4000),
    "a path": "/usr/lib/Python3/dist-packages/Some_Package/Sub-Module/test_data/Fixtures2/" * 3,
    "an address": "https://example.org/profile/Some_Body3/publication/304568993_Measuring_the_"
    "Effects_of_Eyeballs/links/5773eb4208ae1b18a7de3f0a/Measuring-the-Effects-of-Eyeballs.pdf",
    "a name in camel case": "AbstractSingletonProxyFactoryBeanWithTransactionManager2ForRemote"
    "SessionsAndLocalCachesOfTheSecondLevelInTheTestEnvironmentOfTheBuild",
    "one letter": "a" * 5000 + "A1" * 3000,
    "hashes": "".join(f"{RANDOM.randbytes(32).hex()}  file{i}.txt\n" for i in range(40)),
    "a long word": "Donaudampfschiffahrtselektrizitaetenhauptbetriebswerkbauunterbeamten" * 2,
    "a token": "Bearer " + base64.b64encode(RANDOM.randbytes(48)).decode(),
    "the name of a block": "-----BEGIN CERTIFICATE----- and -----END CERTIFICATE----- mark it",
    "nothing": "",
}  # fmt: skip


@each_of("kind", TEXT)
def test_text_of_people_and_of_nature_is_not_data_of_machines(kind):
    assert machine_data.spans(TEXT[kind].encode()) == []


def test_of_examples_prompt_and_completion_lose_their_data_apart():
    data = BASE64.encode()
    kept = Example(b"what is " + data + b"?\n", b"a picture " + data)
    lost = Example(b"write it\n", data)
    (rest,) = machine_data.without([kept, lost])
    assert isinstance(rest, Example)
    assert (rest, rest.lengths) == (b"what is ?\na picture ", (10, 10))


def test_it_is_left_out_of_training_and_validation_text(tmp_path):
    notes = {f"{i:02}.txt": f"note {i} about a day\n" * 20 for i in range(12)}
    for name in ("03.txt", "05.txt", "07.txt"):
        notes[name] += f"\n{BASE64}\n"
    folder = written(tmp_path / "notes", notes | {"picture.txt": wrapped(BASE64, 76)})
    with_it, result = (prepare(str(folder), skip_machine_data=skip) for skip in (False, True))
    assert result.train.path != with_it.train.path
    train, val = text_of(result.train), text_of(result.val)
    assert BASE64[:50].encode() not in train + val
    assert b" about a day" in val
    skipped, note = result.notes
    assert "picture.txt: no text in it" in skipped
    assert "of the text, is left out: " in note
    assert f"left out: {folder}/picture.txt (811 B), {folder}/03.txt (800 B)" in note
