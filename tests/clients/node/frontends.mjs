// Requests as front ends and editors are known to send them, replayed with fetch.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { five, getWeather, url } from "./common.mjs";

const system = { role: "system", content: "You are a helpful assistant." };
const user = { role: "user", content: "Count to 5" };

function post(path, body, headers = {}) {
  return fetch(url + path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
}

async function postJson(path, body, headers) {
  const response = await post(path, body, headers);
  assert.equal(response.status, 200, await response.clone().text());
  return response.json();
}

// The data of every event, as a plain reader of lines sees it.
async function postStream(path, body, headers) {
  const response = await post(path, { ...body, stream: true }, headers);
  assert.equal(response.status, 200, await response.clone().text());
  assert.match(response.headers.get("content-type"), /^text\/event-stream/);
  const lines = (await response.text()).split("\n").filter((line) => line.startsWith("data: "));
  const events = lines.map((line) => line.slice("data: ".length));
  if (events.at(-1) === "[DONE]") events.pop();
  return events.map((event) => JSON.parse(event));
}

const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");

describe("chat-ui", () => {
  const headers = {
    accept: "application/json",
    authorization: "Bearer sk-",
    "user-agent": "OpenAI/JS 4.44.0",
    "x-use-cache": "false",
    "chatui-conversation-id": "6651f5b0c3a0a5d1f0e4d9b1",
    "x-stainless-lang": "js",
    "x-stainless-package-version": "4.44.0",
    "x-stainless-os": "Linux",
    "x-stainless-arch": "x64",
    "x-stainless-runtime": "node",
    "x-stainless-runtime-version": "v20.20.2",
    "x-stainless-retry-count": "0",
  };

  test("models at start", async () => {
    const response = await fetch(`${url}/v1/models`, { headers: { authorization: "Bearer sk-" } });
    assert.equal(response.status, 200);
    assert.ok((await response.json()).data.every((model) => typeof model.id === "string"));
  });

  test("an answer, and a title beside it", async () => {
    const model = "tgi-local/demo";
    const stop = ["<|im_end|>"];
    const title = "You are a summarization AI. Summarize the user's request into a single short sentence.";
    const [chunks, summary] = await Promise.all([
      postStream("/v1/chat/completions", { model, messages: [system, user], stop, temperature: 0.7, top_p: 0.95 }, headers),
      postJson("/v1/chat/completions", {
        model,
        messages: [{ role: "system", content: title }, { role: "user", content: "User message: \"Count to 5\"" }],
        max_tokens: 24,
        temperature: 0,
        stream: false,
      }, headers),
    ]);
    assert.equal(textOf(chunks), five);
    assert.equal(typeof summary.choices[0].message.content, "string");
  });

  test("tools, with assistant messages that have no content", async () => {
    const body = {
      model: "tgi-local/demo",
      tools: [{ type: "function", function: getWeather }],
      tool_choice: "auto",
      messages: [system, { role: "user", content: "What is the weather in Paris?" }],
    };
    const chunks = await postStream("/v1/chat/completions", body, headers);
    const [call] = chunks.flatMap((chunk) => chunk.choices[0].delta.tool_calls ?? []);
    assert.equal(call.function.name, "get_weather");
    const tool_calls = [{ id: call.id, type: "function", function: { name: "get_weather", arguments: "{\"city\":\"Paris\"}" } }];
    const result = { role: "tool", tool_call_id: call.id, content: "sunny, 21 degrees" };
    const messages = [...body.messages, { role: "assistant", tool_calls }, result];
    assert.ok(textOf(await postStream("/v1/chat/completions", { ...body, messages }, headers)));
  });

  test("its former TGI endpoint", async () => {
    const stop = ["<|im_end|>", "never said"];
    const parameters = {
      temperature: 0.1,
      truncate: 1000,
      max_new_tokens: 20,
      stop,
      stop_sequences: stop,
      top_p: 0.95,
      repetition_penalty: 1.2,
      top_k: 50,
      return_full_text: false,
    };
    const inputs = "<|im_start|>user\nCount to 5<|im_end|>\n<|im_start|>assistant\n";
    for (const path of ["/generate_stream", "/"]) {
      const events = await postStream(path, { parameters, model: "tgi", inputs });
      assert.ok(events.slice(0, -1).every((event) => event.generated_text === null && typeof event.token.text === "string"));
      assert.equal(typeof events.at(-1).generated_text, "string");
    }
  });
});

describe("Open WebUI", () => {
  const forwarded = {
    authorization: "Bearer 0p3n-w3bu!",
    "x-openwebui-user-name": "Alice",
    "x-openwebui-user-id": "1b0c3a1e-8c0b-4e1b-9d6e-d4f7b1b5a111",
    "x-openwebui-user-email": "alice@example.com",
    "x-openwebui-user-role": "admin",
    "x-openwebui-chat-id": "6f8a2c7e-5f1b-4c34-b5fd-0c7a2f0f2b11",
  };

  test("models, an answer, a title and follow-ups", async () => {
    const { data } = await (await fetch(`${url}/v1/models`, { headers: forwarded })).json();
    const model = data[0].id;
    const chunks = await postStream("/v1/chat/completions", {
      model,
      messages: [user],
      stream_options: { include_usage: true },
      max_tokens: null,
      seed: null,
      stop: null,
      temperature: null,
      top_p: null,
      top_k: null,
      min_p: null,
      frequency_penalty: null,
      presence_penalty: null,
      repeat_penalty: null,
      logit_bias: null,
      response_format: null,
      reasoning_effort: null,
      chat_template_kwargs: null,
    }, forwarded);
    assert.equal(textOf(chunks), five);
    assert.ok(chunks.at(-1).usage.total_tokens > 0);
    const task = "### Task:\nGenerate a concise, 3-5 word title.\n### Output:\nJSON format: { \"title\": \"...\" }";
    const title = { model, messages: [{ role: "user", content: task }], stream: false, max_completion_tokens: 30, max_tokens: undefined };
    assert.equal(typeof (await postJson("/v1/chat/completions", title, forwarded)).choices[0].message.content, "string");
  });

  test("an image in a conversation is refused by name", async () => {
    const content = [{ type: "text", text: "What is this?" }, { type: "image_url", image_url: { url: "data:image/png;base64,AAAA" } }];
    const response = await post("/v1/chat/completions", { model: "tgi", messages: [{ role: "user", content }], stream: true }, forwarded);
    assert.equal(response.status, 400);
    assert.match((await response.json()).error.message, /image_url/);
  });
});

describe("editors", () => {
  test("Continue: chat, and completion with a stop list", async () => {
    const chunks = await postStream("/v1/chat/completions", { messages: [system, user], model: "AUTODETECT", max_tokens: 200, temperature: 0.5 });
    assert.equal(textOf(chunks), five);
    const events = await postStream("/v1/completions", {
      model: "tgi",
      max_tokens: 30,
      temperature: 0.01,
      stop: ["<|endoftext|>", "/src/", "#- coding: utf-8", "```"],
      prompt: "<fim_prefix>def add(a, b):\n    <fim_suffix>\n<fim_middle>",
    });
    assert.ok(events.every((event) => typeof event.choices[0].text === "string"));
  });

  test("a suffix is refused by name, before a stream begins", async () => {
    const response = await post("/v1/completions", { model: "tgi", prompt: "def add(a, b):", suffix: "\n", max_tokens: 9, stream: true });
    assert.equal(response.status, 400);
    assert.match((await response.json()).error.message, /suffix/i);
  });

  test("Cline and Roo: content parts, usage, no bound", async () => {
    const content = [
      { type: "text", text: "<task>\nCount to 5\n</task>" },
      { type: "text", text: "<environment_details>\n# Current Time\n11/21/2026\n</environment_details>" },
    ];
    const chunks = await postStream("/v1/chat/completions", {
      model: "tgi",
      messages: [system, { role: "user", content }],
      temperature: 0,
      stream_options: { include_usage: true },
      max_completion_tokens: 100,
      parallel_tool_calls: false,
      tools: [{ type: "function", function: { ...getWeather, strict: true } }],
      tool_choice: "auto",
    });
    const usage = chunks.find((chunk) => chunk.usage)?.usage;
    assert.ok(usage.prompt_tokens > 0 && usage.completion_tokens > 0);
    assert.ok("cached_tokens" in usage.prompt_tokens_details);
  });

  test("Zed: parts, no bound, a call and its result in parts", async () => {
    const tool_calls = [{ id: "a", type: "function", function: { name: "get_weather", arguments: "{\"city\":\"Paris\"}" } }];
    const body = {
      model: "tgi",
      max_completion_tokens: null,
      stop: [],
      temperature: 0,
      tools: [{ type: "function", function: getWeather }],
      tool_choice: null,
      parallel_tool_calls: false,
      reasoning_effort: null,
      prompt_cache_key: "9b1deb4d",
      stream_options: { include_usage: true },
    };
    const question = { role: "user", content: [{ type: "text", text: "What is the weather in Paris?" }] };
    const result = { role: "tool", tool_call_id: "a", content: [{ type: "text", text: "sunny, 21 degrees" }] };
    const asked = await postStream("/v1/chat/completions", { ...body, messages: [question] });
    assert.equal(asked.flatMap((chunk) => chunk.choices[0]?.delta.tool_calls ?? [])[0].function.name, "get_weather");
    const messages = [question, { role: "assistant", content: null, tool_calls }, result];
    assert.match(textOf(await postStream("/v1/chat/completions", { ...body, messages })), /21 degrees/);
  });

  test("JetBrains: every field of OpenAI's, null where it has no value", async () => {
    const names = "max_tokens tools tool_choice parallel_tool_calls modalities audio store metadata service_tier user logit_bias";
    const more = "logprobs top_logprobs n prediction seed stop response_format functions function_call frequency_penalty";
    const last = "presence_penalty top_p reasoning_effort web_search_options verbosity safety_identifier";
    const nulls = Object.fromEntries(`${names} ${more} ${last}`.split(" ").map((name) => [name, null]));
    const message = { ...user, name: null, refusal: null, tool_calls: null, tool_call_id: null, function_call: null, audio: null };
    const chunks = await postStream("/v1/chat/completions", { ...nulls, model: "tgi", messages: [system, message], temperature: 0 });
    assert.equal(textOf(chunks), five);
  });

  test("Copilot with a key of one's own: marks of its own in bodies and messages", async () => {
    const headers = { "openai-intent": "conversation-panel", "x-request-id": "1", "x-github-api-version": "2025-05-01" };
    const chunks = await postStream("/v1/chat/completions", {
      model: "tgi",
      messages: [{ ...system, copilot_cache_control: { type: "ephemeral" } }, { ...user, copilot_references: [] }],
      temperature: 0,
      top_p: 1,
      n: 1,
      max_tokens: 100,
      intent: false,
      snippy: { enabled: false },
      stream_options: { include_usage: true },
    }, headers);
    assert.equal(textOf(chunks), five);
  });

  test("JetBrains and others look for models at two places", async () => {
    for (const path of ["/v1/models", "/v1/models/tgi-local/demo", "/v1/models/tgi-local%2Fdemo", "/v1/models?limit=1000"]) {
      const response = await fetch(url + path);
      assert.equal(response.status, 200, path);
    }
  });
});

describe("chat front ends", () => {
  test("LibreChat: its fields, and a title", async () => {
    const body = {
      model: "tgi",
      user: "66a9e5f0c1",
      temperature: 1,
      top_p: 1,
      presence_penalty: 0,
      frequency_penalty: 0,
      messages: [{ role: "user", content: [{ type: "text", text: "Count to 5" }] }],
      stream_options: { include_usage: true },
    };
    assert.equal(textOf(await postStream("/v1/chat/completions", body)), five);
    const functions = { name: "output_title", parameters: { type: "object", properties: { title: { type: "string", maxLength: 20 } }, required: ["title"] } };
    const titled = await postJson("/v1/chat/completions", {
      ...body,
      stream_options: undefined,
      temperature: 0.2,
      max_tokens: 100,
      tools: [{ type: "function", function: functions }],
      tool_choice: { type: "function", function: { name: "output_title" } },
    });
    assert.equal(titled.choices[0].message.tool_calls[0].function.name, "output_title");
  });

  test("SillyTavern: chat with every slider, and text completion in TGI's words", async () => {
    const chat = {
      messages: [system, { role: "system", name: "example_user", content: "Hi" }, user],
      model: "tgi",
      temperature: 1,
      max_tokens: 300,
      presence_penalty: 0,
      frequency_penalty: 0,
      top_p: 1,
      top_k: 0,
      stop: [],
      seed: 7,
      n: 1,
      logit_bias: {},
    };
    assert.ok(textOf(await postStream("/v1/chat/completions", chat)));
    const sampled = {
      prompt: "Alice: Count to 5\nBob:",
      model: "tgi",
      max_new_tokens: 20,
      max_tokens: 20,
      n: 1,
      temperature: 0.7,
      top_p: 0.5,
      typical_p: 0.9,
      typical: 0.9,
      min_p: 0,
      repetition_penalty: 1.2,
      frequency_penalty: 0,
      presence_penalty: 0,
      top_k: 40,
      min_tokens: 0,
      stop: ["\nAlice:"],
      stopping_strings: ["\nAlice:"],
      truncation_length: 2048,
      ignore_eos: false,
      include_reasoning: true,
      sampler_seed: -1,
      seed: -1,
    };
    const events = await postStream("/v1/completions", sampled);
    assert.ok(events.every((event) => typeof event.choices[0].text === "string"));
  });

  test("curl's forms: no model, a stop that is a string, one message", async () => {
    const answer = await postJson("/v1/chat/completions", { messages: [user], stop: ", 4" });
    assert.equal(answer.choices[0].message.content, "1, 2, 3");
  });
});

describe("homes and workflows", () => {
  test("Home Assistant: typed messages, its own word in schemas", async () => {
    const body = { model: "tgi", max_output_tokens: 60, temperature: 0, top_p: 1, user: "01JHOME", store: false, service_tier: "auto" };
    const input = [
      { type: "message", role: "developer", content: "You are a helpful assistant." },
      { type: "message", role: "user", content: "Count to 5" },
    ];
    const events = await postStream("/v1/responses", { ...body, input });
    assert.equal(events.map((event) => (event.type === "response.output_text.delta" ? event.delta : "")).join(""), five);
    const schema = {
      type: "object",
      strict: true,
      additionalProperties: false,
      properties: { on: { type: ["boolean", "null"] } },
      required: ["on"],
    };
    const format = { type: "json_schema", name: "light", schema, strict: true };
    const { output } = await postJson("/v1/responses", { ...body, input, text: { format } });
    assert.ok("on" in JSON.parse(output[0].content[0].text));
  });

  test("Dify: its checks of a model, and TGI's parameters as null", async () => {
    const ping = { model: "tgi", max_tokens: 5 };
    const chat = await postJson("/v1/chat/completions", { ...ping, messages: [{ role: "user", content: "ping" }] });
    assert.equal(chat.object, "chat.completion");
    assert.equal((await postJson("/v1/completions", { ...ping, prompt: "ping" })).object, "text_completion");
    const nulls = "best_of repetition_penalty seed temperature top_k top_n_tokens top_p truncate typical_p".split(" ");
    const parameters = { ...Object.fromEntries(nulls.map((name) => [name, null])), do_sample: false, max_new_tokens: 1, stop: [], details: true };
    const native = await postJson("/generate", { inputs: "Who are you?", parameters });
    assert.equal(native.details.generated_tokens, 1);
  });

  test("Jan: llama.cpp's fields", async () => {
    const fields = { top_k: 40, min_p: 0.05, repeat_last_n: 64, repeat_penalty: 1, n_predict: -1, cache_prompt: true, dry_multiplier: 0 };
    const body = { ...fields, model: "tgi", messages: [user], temperature: 0, return_progress: true, timings_per_token: true };
    assert.equal(textOf(await postStream("/v1/chat/completions", body)), five);
  });
});

describe("browsers", () => {
  const origin = { origin: "https://chat.example" };

  test("another site's page gets no answer without being listed", async () => {
    const preflight = await fetch(`${url}/v1/chat/completions`, {
      method: "OPTIONS",
      headers: { ...origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type" },
    });
    assert.equal(preflight.headers.get("access-control-allow-origin"), null);
    const response = await post("/v1/chat/completions", { messages: [user] }, { ...origin, authorization: "Bearer -" });
    assert.equal(response.status, 403);
  });

  test("the server's own page does", async () => {
    const response = await post("/v1/chat/completions", { messages: [user] }, { origin: url, "sec-fetch-site": "same-origin" });
    assert.equal(response.status, 200);
    await response.text();
  });
});
