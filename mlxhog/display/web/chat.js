"use strict";
const $ = (id) => document.getElementById(id);
let model = null, messages = [], running = null, key = "";

function add(kind, text) {  // text of the model is never markup
  const line = document.createElement(kind === "about" ? "small" : "p");
  line.className = kind;
  line.textContent = text;
  if (kind === "error") line.setAttribute("role", "alert");
  $("hint").hidden = true;
  $("log").append(line);
  $("log").scrollTop = $("log").scrollHeight;
  return line;
}

async function call(path, options = {}) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = "Bearer " + key;
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) { $("key-row").hidden = true; return answer; }
  if (answer.status === 401) { $("key-row").hidden = false; $("key").focus(); }
  const body = await answer.json().catch(() => null);
  throw new Error(body?.error?.message ?? "the server answers with status " + answer.status);
}

async function connect() {
  const list = await (await call("v1/models")).json();
  model = list.data[0].id;
  $("model").textContent = model;
  document.title = model;
  const { trained_on: text, sample_prompt: prompt } = list.data[0].mlxhog;
  const chats = text.endsWith("(conversations)");
  if (!text) return;
  $("about").textContent = "Trained on " + text + (chats ? ": it chats." : ": it continues a text.");
  $("mode").value = chats ? "chat" : "continue";
  $("text").placeholder = prompt.replace(/^[^]*\nUser: |^User: |\nAssistant:$/g, "");
}

function writer(line) {  // drawing every token would take longer than writing it
  let text = "", timer = null;
  const flush = () => {
    clearTimeout(timer);
    timer = null;
    line.append(text);
    text = "";
    $("log").scrollTop = $("log").scrollHeight;
  };
  return { flush, write: (more) => { text += more; timer ??= setTimeout(flush, 50); } };
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function ask(text) {
  const chat = messages;  // "New chat" begins another
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  let line = null, out = null, about = "";
  const continues = $("mode").value === "continue";  // as a model of notes does, without turns
  const asked = [...chat, { role: "user", content: text }];
  try {
    if (!model) await connect();
    add("user", text);
    $("text").value = "";
    line = add("answer", "");
    out = writer(line);
    const answer = await call(continues ? "v1/completions" : "v1/chat/completions", {
      method: "POST",
      signal: running.signal,
      body: JSON.stringify({
        model, stream: true, ...(continues ? { prompt: text } : { messages: asked }),
        temperature: Number($("temperature").value), max_tokens: Number($("tokens").value),
      }),
    });
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      out.write(event.choices[0]?.delta?.content ?? event.choices[0]?.text ?? "");
      if (event.choices[0]?.finish_reason === "length") about = "cut at the number of tokens";
    }
    out.flush();
    if (!line.textContent) about = "the model ended the answer at once";
    if (about) add("about", about);
  } catch (error) {
    out?.flush();
    if (chat !== messages) line = null;
    else if (error.name === "AbortError") add("about", "stopped");
    else add("error", error instanceof TypeError ? "the server does not answer" : error.message);
  }
  if (line?.textContent && !continues) messages = [...asked, { role: "assistant", content: line.textContent }];
  else if (line && !line.textContent && !$("text").value) $("text").value = text;  // so that it can be sent again
  running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  if ($("key-row").hidden) $("text").focus();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text && !running) ask(text);
});
$("text").addEventListener("keydown", (event) => {
  // Safari ends the composition before this event, which has the key code of input methods (WebKit bug 165004).
  const composes = event.isComposing || event.keyCode === 229;
  if (event.key === "Enter" && !event.shiftKey && !composes) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  $("log").replaceChildren($("hint"));
  $("hint").hidden = false;
  $("text").focus();
});
function useKey() {
  key = $("key").value.trim();
  connect().then(() => { add("about", "the key is accepted"); $("text").focus(); })
    .catch((error) => add("error", error.message));
}
$("use-key").addEventListener("click", useKey);
$("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); useKey(); }
});
connect().catch((error) => add("error", error.message));
