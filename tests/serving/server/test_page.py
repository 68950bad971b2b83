"""The page to chat with a model, in a browser."""

import json

import pytest

from tests.serving.server.servers import MLX, serving

pytestmark = pytest.mark.slow

KEY = "open-sesame"
PHONE = {"width": 390, "height": 844}


def opened(visit, server, **options):
    from playwright.sync_api import expect

    window = visit(**options)
    window.page.goto(server.root)
    return window, window.page, expect


def say(page, text):
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def test_text_of_the_model_is_never_markup_and_earlier_turns_are_sent(visit, server):
    markup = "<img src=x onerror=\"document.title='x'\"> <b>bold</b>\n\ntwo"
    bodies = []

    def fulfil(route):
        """Answer with a stream that says the markup."""
        bodies.append(route.request.post_data_json)
        deltas = [{"content": markup[:9]}, {"content": markup[9:]}, {}]
        chunks = [{"choices": [{"delta": one, "finish_reason": None}]} for one in deltas]
        chunks[-1] |= {"mlxhog": {"version_last": 7}}
        stream = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks) + "data: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=stream)

    window, page, expect = opened(visit, server)
    page.route("**/v1/chat/completions", fulfil)
    say(page, "<i>one</i>")
    expect(page.locator(".answer")).to_have_text(markup, use_inner_text=True)
    assert page.locator("#log img, #log b, #log i").count() == 0
    say(page, "more")
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".about")).to_have_count(0)  # no version of the weights
    said = [("user", "<i>one</i>"), ("assistant", markup), ("user", "more")]
    assert [(turn["role"], turn["content"]) for turn in bodies[1]["messages"]] == said
    assert window.troubles == []


@pytest.mark.parametrize(
    ("kind", "says", "mode", "prompt"),
    [
        ("plain text", "it continues a text.", "continue", "Dear Ann"),
        ("conversations", "it chats.", "chat", "User: Dear Ann\nAssistant:"),
    ],
)
def test_the_page_says_what_the_model_was_trained_on(visit, server, kind, says, mode, prompt):
    about = {"trained_on": f"notes ({kind})", "sample_prompt": prompt}
    body = {"data": [{"id": server.model, "mlxhog": about}]}
    window = visit()
    window.page.route("**/v1/models", lambda route: route.fulfill(json=body))
    window.page.goto(server.root)
    window.page.wait_for_function("document.querySelector('#about').textContent")
    assert window.page.locator("#about").text_content() == f"Trained on notes ({kind}): {says}"
    assert window.page.get_by_label("mode").input_value() == mode
    assert window.page.get_by_label("Message").get_attribute("placeholder") == "Dear Ann"


def test_a_phone_asks_for_the_key_then_shows_an_answer_while_it_is_written(visit, folder):
    with serving("latest", MLX, cwd=folder, MLXHOG_API_KEY=KEY) as server:
        window, page, expect = opened(visit, server, viewport=PHONE)
        expect(page.get_by_role("alert")).to_contain_text("the API key is missing or wrong")
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Use").click()
        expect(page.get_by_role("alert")).to_have_count(2)
        page.get_by_label("API key").fill(KEY)
        page.get_by_label("API key").press("Enter")
        expect(page.locator(".about")).to_have_text("the key is accepted")
        expect(page.get_by_label("API key")).to_be_hidden()
        expect(page.get_by_role("heading")).to_have_text(server.model)
        page.get_by_label("tokens").fill("40")
        say(page, "ab")
        expect(page.locator(".user")).to_have_text("ab")
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator(".answer")).not_to_be_empty()
        hint, mode = page.locator("#about"), page.get_by_label("mode")
        assert (hint.text_content(), mode.input_value()) == ("", "chat")  # of a text not recorded
        mode.select_option("continue")
        with page.expect_request("**/v1/completions") as sent:
            say(page, "abc")
        assert sent.value.post_data_json["prompt"] == "abc"
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator(".answer").last).not_to_be_empty()
        assert window.cut(390) == []
        assert all(url.startswith(server.root) for url in window.requests)


def test_a_message_is_sent_once_it_is_whole_and_its_numbers_are_there(visit, server):
    """Safari's Enter at the end of a composition has the key code of input methods, 229."""
    bodies = []

    def fulfil(route):
        bodies.append(route.request.post_data_json)
        route.fulfill(status=200, content_type="text/event-stream", body="data: [DONE]\n\n")

    _, page, expect = opened(visit, server)
    page.route("**/v1/chat/completions", fulfil)
    expect(page.get_by_role("heading")).to_have_text(server.model)
    page.get_by_label("Message").fill("かな")
    page.get_by_label("Message").evaluate(
        "box => box.dispatchEvent(new KeyboardEvent('keydown', "
        "{key: 'Enter', keyCode: 229, bubbles: true, cancelable: true}))"
    )
    expect(page.locator("#send")).to_be_visible()
    for label, valid in (("tokens", "7"), ("temperature", "0.5")):
        page.get_by_label(label).fill("")
        page.get_by_label("Message").press("Enter")
        expect(page.locator("#send")).to_be_visible()
        page.get_by_label(label).fill(valid)
    assert bodies == []
    page.get_by_label("Message").press("Enter")
    expect(page.locator(".about")).to_have_text("the model ended the answer at once")
    (body,) = bodies
    assert (body["max_tokens"], body["temperature"]) == (7, 0.5)
    assert body["messages"][-1]["content"] == "かな"


def test_a_server_that_is_gone_is_named_in_every_browser(visit, server):
    _, page, expect = opened(visit, server)
    expect(page.get_by_role("heading")).to_have_text(server.model)
    fails = "window.fetch = async () => { throw new TypeError('Load failed'); }"  # Safari's words
    page.evaluate(f"() => {{ {fails} }}")
    say(page, "ab")
    expect(page.get_by_role("alert")).to_have_text("the server does not answer")
