"""`mlxhog dashboard`: a page that follows a run, on this machine, in a real browser."""

import json
import re
from contextlib import ExitStack

import pytest

from mlxhog.base.durable import replace_file
from mlxhog.display.record import RunRecord
from mlxhog.display.run_page import report
from tests.display.sample_run import EVENTS, append, event, lines, write_run
from tests.serving.server.servers import serving
from tests.threads import wait_until


@pytest.fixture
def serve():
    """Starts boards; they are ended with the test."""
    with ExitStack() as stack:
        yield lambda run: stack.enter_context(serving(run.directory, command="dashboard"))


def asked(server, path, *, method="GET", **headers):
    """What it answers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.http.request(method, server.url + path, headers=named)


def run_in(page):
    """The data of the run on a page."""
    return json.loads(re.search(rb'id="data">(.*?)</script>', page, re.S)[1])["runs"][0]


def test_eight_hours_of_sixteen_workers_weigh_less_than_half_a_megabyte(tmp_path):
    # a line in 57.6 s: as many as will not fit are drawn in the same number of points
    run = write_run(tmp_path, metrics=lines(500, workers=16, every_s=57.6))
    page = report([RunRecord(run)], buttons="<p></p>").encode()
    assert len(page) < 500_000
    assert run_in(page)["axes"]["elapsed_s"][-1] == 28_800
    assert b"connect-src 'self'" in page
    assert b'src="' not in page


def test_a_page_is_sent_again_only_when_the_run_has_news(tmp_path, serve):
    run = write_run(tmp_path, metrics=lines(3), events=EVENTS[:1])
    server = serve(run)

    def news(tag):
        def fresh():
            answer = asked(server, "", If_None_Match=tag)
            return answer.status_code == 200 and (answer.headers["etag"], answer.content)

        return wait_until(fresh)

    tag, _ = news("")
    again = asked(server, "", If_None_Match=tag)
    assert (again.status_code, again.headers["etag"], again.content) == (304, tag, b"")
    append(run, list(lines(5))[3:])
    tag, page = news(tag)
    assert run_in(page)["axes"]["step"] == [20, 40, 60, 80, 100]
    with run.events_path.open("a") as file:
        file.write(json.dumps(event("sample", "fresh text")) + "\n")
    tag, page = news(tag)
    assert b"fresh text" in page
    replace_file(run.config_path, b"strategy: sync\n")  # as the end of a start does
    tag, page = news(tag)
    assert re.search(rb"Differs from the defaults: (.*)</p>", page)[1] == b"strategy sync"
    run.drop_metrics_after(step=20, elapsed_s=2.0)  # as a resume does
    _, page = news(tag)
    assert run_in(page)["axes"]["step"] == [20]


def test_a_request_without_token_for_another_site_or_of_an_ended_run_is_refused(tmp_path, serve):
    server = serve(write_run(tmp_path, metrics=lines(3)))
    token = {"X_Mlxhog_Token": server.told["token"]}
    for path, headers, status, says in (
        ("ask/stop", {}, 403, "token"),
        ("ask/stop", {"X_Mlxhog_Token": "guess"}, 403, "token"),
        ("ask/stop", {"Host": "evil.example"} | token, 421, "its own address"),
        ("ask/stop", {"Origin": "http://evil.example"} | token, 421, "its own address"),
        ("ask/stop", token, 409, "not running"),
        ("ask/dance", token, 404, "expected one of"),
    ):
        answer = asked(server, path, method="POST", **headers)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
        assert says in answer.json()["error"]
    assert asked(server, "ask/stop", **token).status_code == 405


@pytest.mark.slow
def test_a_board_that_is_gone_is_said_until_it_answers_again(tmp_path, serve, visit):
    run = write_run(tmp_path, metrics=lines(5), status={"status": "running"})
    with run.lock():  # by a process that answers nothing
        server, window = serve(run), visit()
        assert visit().open(server.url).locator("#asks").is_hidden()  # without the token
        page = window.open(f"{server.url}#{server.told['token']}")
        assert page.url == server.url
        page.locator('button[data-ask="sample"]').press("Enter")
        page.locator("#told", has_text="not running").wait_for()
        gone = page.locator("#gone")
        page.route(server.url, lambda route: route.abort())
        gone.wait_for()
        page.unroute(server.url)
        gone.wait_for(state="hidden")
    assert server.end()[0] == 0
    gone.wait_for()


@pytest.mark.slow
def test_a_real_run_is_followed_without_a_reload_and_controlled_by_keyboard(going_on, serve, visit):
    from playwright.sync_api import expect

    run, server, window = going_on.run, serve(going_on.run), visit()
    page = window.open(f"{server.url}#{server.told['token']}")
    page.on("dialog", lambda dialog: dialog.accept())
    notice, facts = page.locator("#told"), page.locator("#facts")
    newest = page.locator("#loss .chart").get_attribute("aria-label")
    page.locator('button[data-ask="checkpoint"]').press("Enter")
    notice.filter(has_text="step-").wait_for()
    assert list(run.checkpoints.iterdir())
    expect(facts).not_to_have_text(facts.inner_text(), use_inner_text=True)
    expect(page.locator("#loss .chart")).not_to_have_attribute("aria-label", newest)
    assert "step-" in notice.inner_text()  # news of the run leave the answer there
    page.locator('button[data-ask="sample"]').press("Enter")
    page.locator(".samples li").first.wait_for()
    assert window.cut(390) == []
    page.locator('button[data-ask="stop"]').press("Enter")
    page.locator("#state-0", has_text="interrupted").wait_for()
    page.locator('button[data-ask="stop"]').wait_for(state="hidden")
    assert going_on.process.wait(120) is not None
    assert run.read_status()["result"]["checkpoint"]
    assert window.troubles == []
