// Anthropic's SDK: messages, its stream helper, tools and their runner, structured output, token counts, errors.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
import { z } from "zod/v4";
import { collect, count, five, getWeather, joined, url, weatherQuestion } from "./common.mjs";

const client = new Anthropic({ baseURL: url, apiKey: "-", maxRetries: 0 });
const about = { model: "tgi", max_tokens: 64 };
const tools = [{ name: getWeather.name, description: getWeather.description, input_schema: getWeather.parameters }];

describe("@anthropic-ai/sdk", () => {
  test("messages", async () => {
    const answer = await client.messages.create({ ...about, messages: count, system: "You are a helpful assistant." });
    assert.deepEqual(answer.content, [{ type: "text", text: five }]);
    assert.equal(answer.stop_reason, "end_turn");
    assert.ok(answer.usage.input_tokens + answer.usage.cache_read_input_tokens > 0 && answer.usage.output_tokens > 5);
  });

  test("blocks, cache marks, metadata, stop sequences", async () => {
    const cache_control = { type: "ephemeral" };
    const answer = await client.messages.create({
      ...about,
      system: [{ type: "text", text: "You are a helpful assistant.", cache_control }],
      messages: [{ role: "user", content: [{ type: "text", text: "Count to 5", cache_control }] }],
      stop_sequences: [", 4"],
      metadata: { user_id: "u" },
      temperature: 0,
      top_k: 5,
    });
    assert.equal(answer.content[0].text, "1, 2, 3");
    assert.equal(answer.stop_reason, "stop_sequence");
    assert.equal(answer.stop_sequence, ", 4");
  });

  test("raw stream", async () => {
    const events = await collect(await client.messages.create({ ...about, messages: count, stream: true }));
    const kinds = events.map((event) => event.type).filter((kind) => kind !== "ping" && kind !== "content_block_delta");
    assert.deepEqual(kinds, ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]);
    assert.equal(joined(events, (event) => event.delta?.text), five);
  });

  test("stream helper", async () => {
    const stream = client.messages.stream({ ...about, messages: count });
    let text = "";
    stream.on("text", (delta) => (text += delta));
    const message = await stream.finalMessage();
    assert.equal(text, five);
    assert.equal(await stream.finalText(), five);
    assert.equal(message.stop_reason, "end_turn");
    assert.ok(message.usage.output_tokens > 5);
  });

  test("tools, streamed and not, and their results", async () => {
    const first = await client.messages.create({ ...about, messages: weatherQuestion, tools });
    assert.equal(first.stop_reason, "tool_use");
    const use = first.content.find((block) => block.type === "tool_use");
    assert.deepEqual(use.input, { city: "Paris" });
    const streamed = client.messages.stream({ ...about, messages: weatherQuestion, tools });
    let partial = "";
    streamed.on("inputJson", (delta) => (partial += delta));
    const message = await streamed.finalMessage();
    assert.deepEqual(message.content.at(-1).input, { city: "Paris" });
    assert.deepEqual(JSON.parse(partial), { city: "Paris" });
    const result = { type: "tool_result", tool_use_id: use.id, content: [{ type: "text", text: "sunny, 21 degrees" }] };
    const messages = [...weatherQuestion, { role: "assistant", content: first.content }, { role: "user", content: [result] }];
    const final = await client.messages.create({ ...about, messages, tools });
    assert.equal(final.stop_reason, "end_turn");
    for (const tool_choice of [{ type: "any" }, { type: "tool", name: "get_weather", disable_parallel_tool_use: true }]) {
      const forced = await client.messages.create({ ...about, messages: weatherQuestion, tools, tool_choice });
      assert.equal(forced.content[0].name, "get_weather");
    }
  });

  test("tool runner", async () => {
    const asked = [];
    const tool = betaTool({
      name: getWeather.name,
      description: getWeather.description,
      inputSchema: getWeather.parameters,
      run: ({ city }) => (asked.push(city), "sunny, 21 degrees"),
    });
    const answer = await client.beta.messages.toolRunner({ ...about, messages: [...weatherQuestion], tools: [tool] });
    assert.equal(answer.stop_reason, "end_turn");
    assert.deepEqual(asked, ["Paris"]);
  });

  test("structured output", async () => {
    const Answer = z.object({ ok: z.boolean(), size: z.enum(["small", "large"]) });
    const answer = await client.messages.parse({
      ...about,
      messages: count,
      output_config: { format: zodOutputFormat(Answer) },
    });
    Answer.parse(answer.parsed_output);
  });

  test("token counts", async () => {
    const counted = await client.messages.countTokens({ model: "tgi", messages: count, tools });
    const plain = await client.messages.countTokens({ model: "tgi", messages: count });
    assert.ok(counted.input_tokens > plain.input_tokens && plain.input_tokens > 0);
  });

  test("models", async () => {
    const [model] = await collect(client.models.list());
    assert.equal(model.type, "model");
    assert.equal(model.display_name, model.id);
    assert.ok(!Number.isNaN(Date.parse(model.created_at)), "lists are sorted by it");
    assert.deepEqual(await client.models.retrieve(model.id), model);
    const page = await client.models.list({ limit: 1000 });
    assert.equal(page.hasNextPage(), false);
    assert.equal(page.last_id, model.id);
  });

  test("errors are typed", async () => {
    const wrong = { ...about, messages: count, temperature: -1 };
    await assert.rejects(client.messages.create(wrong), (error) => {
      assert.ok(error instanceof Anthropic.BadRequestError);
      assert.equal(error.error.error.type, "invalid_request_error");
      assert.match(error.message, /temperature/);
      return true;
    });
    await assert.rejects(client.messages.stream(wrong).finalMessage(), Anthropic.BadRequestError);
  });

  test("abort", async () => {
    const stream = client.messages.stream({ ...about, max_tokens: 1500, messages: [{ role: "user", content: "Tell me a story" }] });
    stream.on("text", () => stream.abort());
    await assert.rejects(stream.finalMessage(), Anthropic.APIUserAbortError);
  });
});
