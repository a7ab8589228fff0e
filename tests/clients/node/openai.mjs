// OpenAI's own SDK in three majors: chat, its stream and tool helpers, parsing, completions, responses, errors.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { z } from "zod";
import { collect, count, five, getWeather, joined, url, weatherQuestion } from "./common.mjs";

const model = "tgi";
const tools = [{ type: "function", function: getWeather }];
// Bounded everywhere: held to a schema, a model this small ends no text by itself.
const Person = z.object({
  name: z.enum(["Alice", "Bob"]),
  age: z.number().int().min(0).max(120),
  tags: z.array(z.enum(["tall", "short"])).max(2),
});

const textOf = (chunks) => joined(chunks, (chunk) => chunk.choices[0]?.delta.content);

for (const name of ["openai", "openai-6", "openai-4"]) {
  const { default: OpenAI } = await import(name);
  const { zodFunction, zodResponseFormat, zodTextFormat } = await import(`${name}/helpers/zod`);
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "-", maxRetries: 0 });
  // Version 4 reads the schemas of zod 3 only, which is not installed beside zod 4.
  const skip = name === "openai-4";
  // What version 5 took out of beta.
  const chat = typeof client.chat.completions.runTools === "function" ? client.chat.completions : client.beta.chat.completions;

  describe(name, () => {
    test("chat", async () => {
      const { data: answer, response } = await client.chat.completions
        .create({ model, messages: count, user: "u", metadata: { a: "b" }, store: false })
        .withResponse();
      assert.equal(response.headers.get("content-type"), "application/json");
      assert.equal(answer.choices[0].message.content, five);
      assert.equal(answer.choices[0].finish_reason, "stop");
      assert.equal(answer.usage.prompt_tokens + answer.usage.completion_tokens, answer.usage.total_tokens);
    });

    test("chat with content parts, a developer's message and n", async () => {
      const answer = await client.chat.completions.create({
        model,
        messages: [
          { role: "developer", content: [{ type: "text", text: "You are a helpful assistant." }] },
          { role: "user", name: "alice", content: [{ type: "text", text: "Count " }, { type: "text", text: "to 5" }] },
        ],
        n: 2,
        temperature: 0,
        top_p: 1,
        seed: 1,
        max_completion_tokens: 64,
        presence_penalty: 0,
        service_tier: "auto",
      });
      assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
      assert.ok(answer.choices.every((choice) => choice.message.role === "assistant" && choice.message.content));
    });

    test("logprobs", async () => {
      const answer = await client.chat.completions.create({ model, messages: count, logprobs: true, top_logprobs: 3 });
      const { content } = answer.choices[0].logprobs;
      // The token that ends the turn has a probability and no text.
      assert.equal(joined(content, (entry) => entry.token).replace("<|im_end|>", ""), five);
      assert.ok(content.every((entry) => entry.logprob <= 0 && entry.top_logprobs.length === 3 && Array.isArray(entry.bytes)));
    });

    test("stop and length", async () => {
      const stopped = await client.chat.completions.create({ model, messages: count, stop: [", 4"] });
      assert.equal(stopped.choices[0].message.content, "1, 2, 3");
      assert.equal(stopped.choices[0].finish_reason, "stop");
      const short = await client.chat.completions.create({ model, messages: count, max_tokens: 2 });
      assert.equal(short.choices[0].finish_reason, "length");
    });

    test("stream", async () => {
      const chunks = await collect(
        await client.chat.completions.create({ model, messages: count, stream: true, stream_options: { include_usage: true } }),
      );
      assert.equal(textOf(chunks), five);
      assert.ok(chunks.every((chunk) => chunk.id === chunks[0].id && chunk.object === "chat.completion.chunk"));
      assert.deepEqual(chunks.at(-1).choices, []);
      assert.ok(chunks.at(-1).usage.completion_tokens > 5);
      assert.equal(chunks.at(-2).choices[0].finish_reason, "stop");
    });

    test("stream of two choices", async () => {
      const stream = await client.chat.completions.create({ model, messages: count, stream: true, n: 2, temperature: 0 });
      const chunks = await collect(stream);
      for (const index of [0, 1]) {
        assert.equal(joined(chunks, ({ choices: [c] }) => (c.index === index ? c.delta.content : "")), five);
      }
    });

    test("stream helper", async () => {
      const stream = chat.stream({ model, messages: count, stream_options: { include_usage: true } });
      let text = "";
      const seen = new Set();
      stream.on("content", (delta, snapshot) => ((text += delta), assert.equal(snapshot, text)));
      for (const event of ["connect", "chunk", "content.delta", "content.done", "message", "finalContent", "end"]) {
        stream.on(event, () => seen.add(event));
      }
      const final = await stream.finalChatCompletion();
      assert.equal(final.choices[0].message.content, five);
      assert.equal(text, five);
      assert.equal(await stream.finalContent(), five);
      assert.ok((await stream.totalUsage()).total_tokens > 0);
      assert.equal(seen.size, 7, [...seen].join());
    });

    test("stream helper with tools", async () => {
      const stream = chat.stream({ model, messages: weatherQuestion, tools });
      const done = [];
      stream.on("tool_calls.function.arguments.done", (event) => done.push(event));
      const final = await stream.finalChatCompletion();
      const [call] = final.choices[0].message.tool_calls;
      assert.equal(call.function.name, "get_weather");
      assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
      assert.equal(final.choices[0].finish_reason, "tool_calls");
      assert.equal(done.length, 1);
      assert.equal(done[0].name, "get_weather");
    });

    test("stream as a readable stream and back", async () => {
      const stream = chat.stream({ model, messages: count });
      const { ChatCompletionStream } = await import(`${name}/lib/ChatCompletionStream`);
      const copy = ChatCompletionStream.fromReadableStream(stream.toReadableStream());
      assert.equal(await copy.finalContent(), five);
    });

    test("abort", async () => {
      const stream = await client.chat.completions.create({
        model,
        messages: [{ role: "user", content: "Tell me a long story" }],
        stream: true,
        max_tokens: 1500,
        ignore_eos: true,
      });
      let read = 0;
      for await (const _ of stream) if (++read === 3) stream.controller.abort();
      assert.ok(read < 1000, `${read} chunks`); // what had arrived may still be read
      const controller = new AbortController();
      const asked = client.chat.completions.create(
        { model, messages: count, max_tokens: 1500, ignore_eos: true },
        { signal: controller.signal },
      );
      setTimeout(() => controller.abort(), 30);
      await assert.rejects(asked, OpenAI.APIUserAbortError);
    });

    test("tools: auto, required, by name, none", async () => {
      const ask = async (options) =>
        (await client.chat.completions.create({ model, messages: weatherQuestion, tools, ...options })).choices[0];
      for (const tool_choice of ["auto", "required", { type: "function", function: { name: "get_weather" } }]) {
        const { message } = await ask({ tool_choice });
        assert.equal(message.tool_calls[0].function.name, "get_weather");
        assert.equal(typeof JSON.parse(message.tool_calls[0].function.arguments).city, "string");
      }
      assert.equal((await ask({ tool_choice: "none" })).message.tool_calls, undefined);
      const forced = await ask({ tool_choice: "required", parallel_tool_calls: false });
      assert.equal(forced.message.tool_calls.length, 1);
    });

    test("tool call round trip", async () => {
      const { message } = (await client.chat.completions.create({ model, messages: weatherQuestion, tools })).choices[0];
      const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "sunny, 21 degrees" };
      const answer = await client.chat.completions.create({ model, messages: [...weatherQuestion, message, result], tools });
      assert.equal(answer.choices[0].finish_reason, "stop");
      assert.ok(answer.choices[0].message.content);
    });

    test("streamed tool deltas", async () => {
      const chunks = await collect(
        await client.chat.completions.create({ model, messages: weatherQuestion, tools, stream: true }),
      );
      const deltas = chunks.flatMap((chunk) => chunk.choices[0].delta.tool_calls ?? []);
      assert.ok(deltas[0].id && deltas[0].type === "function" && deltas.every((delta) => delta.index === 0));
      assert.equal(joined(deltas, (delta) => delta.function.name), "get_weather");
      assert.deepEqual(JSON.parse(joined(deltas, (delta) => delta.function.arguments)), { city: "Paris" });
      assert.equal(chunks.at(-1).choices[0].finish_reason, "tool_calls");
    });

    test("runTools", async () => {
      const asked = [];
      const runner = chat.runTools({
        model,
        messages: [...weatherQuestion],
        tools: [
          {
            type: "function",
            function: { ...getWeather, parse: JSON.parse, function: ({ city }) => (asked.push(city), "sunny, 21 degrees") },
          },
        ],
      });
      assert.ok(await runner.finalContent());
      assert.deepEqual(asked, ["Paris"]);
    });

    test("runTools, streamed, with zod", { skip }, async () => {
      const asked = [];
      const tool = zodFunction({
        name: "get_weather",
        description: getWeather.description,
        parameters: z.object({ city: z.string() }),
        function: ({ city }) => (asked.push(city), { weather: "sunny" }),
      });
      const runner = chat.runTools({ model, stream: true, messages: [...weatherQuestion], tools: [tool] });
      const final = await runner.finalChatCompletion();
      assert.equal(final.choices[0].finish_reason, "stop");
      assert.deepEqual(asked, ["Paris"]);
    });

    test("parse", { skip }, async () => {
      const answer = await chat.parse({
        model,
        messages: [{ role: "user", content: "Alice is 30." }],
        response_format: zodResponseFormat(Person, "person"),
        max_tokens: 1000,
      });
      const { parsed } = answer.choices[0].message;
      Person.parse(parsed);
      const streamed = await chat
        .stream({
          model,
          messages: [{ role: "user", content: "Alice is 30." }],
          response_format: zodResponseFormat(Person, "person"),
          max_tokens: 1000,
        })
        .finalChatCompletion();
      Person.parse(streamed.choices[0].message.parsed);
    });

    test("parse of a tool call", { skip }, async () => {
      const tool = zodFunction({ name: "get_weather", parameters: z.object({ city: z.string() }) });
      const answer = await chat.parse({ model, messages: weatherQuestion, tools: [tool] });
      assert.deepEqual(answer.choices[0].message.tool_calls[0].function.parsed_arguments, { city: "Paris" });
    });

    test("JSON mode", async () => {
      const answer = await client.chat.completions.create({
        model,
        messages: count,
        response_format: { type: "json_object" },
        max_tokens: 200,
        temperature: 0,
      });
      if (answer.choices[0].finish_reason === "stop") JSON.parse(answer.choices[0].message.content);
      const text = await client.chat.completions.create({ model, messages: count, response_format: { type: "text" } });
      assert.equal(text.choices[0].message.content, five);
    });

    test("errors are typed", async () => {
      const bad = client.chat.completions.create({ model, messages: count, temperature: -1 });
      await assert.rejects(bad, (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError);
        assert.equal(error.status, 400);
        assert.equal(error.param, "temperature");
        assert.equal(error.type, "invalid_request_error");
        return true;
      });
      await assert.rejects(client.models.retrieve("other"), OpenAI.NotFoundError);
      const streamed = client.chat.completions.create({ model, messages: [], stream: true });
      await assert.rejects(streamed, OpenAI.BadRequestError);
      await assert.rejects(chat.stream({ model, messages: count, top_p: 7 }).finalContent(), OpenAI.BadRequestError);
      await assert.rejects(client.embeddings.create({ model, input: "x" }), OpenAI.NotFoundError);
    });

    test("models", async () => {
      const ids = await collect(await client.models.list());
      assert.equal(ids.length, 1);
      assert.equal((await client.models.retrieve(ids[0].id)).id, ids[0].id);
    });

    test("completions", async () => {
      const prompt = "What is Deep Learning?";
      const answer = await client.completions.create({ model, prompt, max_tokens: 8, echo: true, logprobs: 2 });
      const [choice] = answer.choices;
      assert.ok(choice.text.startsWith(prompt));
      assert.equal(choice.logprobs.tokens.length, choice.logprobs.token_logprobs.length);
      assert.equal(choice.logprobs.text_offset.length, choice.logprobs.tokens.length);
      assert.equal(choice.logprobs.token_logprobs[0], null);
      const ids = await client.completions.create({ model, prompt: [10, 11, 12], max_tokens: 4 });
      assert.equal(ids.usage.prompt_tokens, 3);
      const several = await client.completions.create({ model, prompt: ["a", "b"], n: 2, max_tokens: 3 });
      assert.deepEqual(several.choices.map((c) => c.index), [0, 1, 2, 3]);
      const chunks = await collect(
        await client.completions.create({ model, prompt, max_tokens: 8, stream: true, temperature: 0, stream_options: { include_usage: true } }),
      );
      const whole = await client.completions.create({ model, prompt, max_tokens: 8, temperature: 0 });
      assert.equal(joined(chunks, (chunk) => chunk.choices[0]?.text), whole.choices[0].text);
      assert.equal(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
    });

    test("responses", async () => {
      const answer = await client.responses.create({ model, input: "Count to 5", instructions: "You are a helpful assistant." });
      assert.equal(answer.output_text, five);
      assert.equal(answer.status, "completed");
      const next = await client.responses.create({ model, input: "Count to 5", previous_response_id: answer.id });
      assert.equal(next.previous_response_id, answer.id);
      assert.equal((await client.responses.retrieve(answer.id)).output_text ?? five, five);
      await client.responses.del?.(answer.id);
    });

    test("responses, streamed", async () => {
      const events = await collect(await client.responses.create({ model, input: "Count to 5", stream: true }));
      assert.equal(joined(events, (event) => (event.type === "response.output_text.delta" ? event.delta : "")), five);
      assert.equal(events.at(-1).type, "response.completed");
      const stream = client.responses.stream({ model, input: "Count to 5" });
      assert.equal((await stream.finalResponse()).output[0].content[0].text, five);
    });

    test("responses, tools", async () => {
      const responseTools = [{ type: "function", ...getWeather, strict: true }];
      const input = [...weatherQuestion];
      const first = await client.responses.create({ model, input, tools: responseTools });
      const call = first.output.find((item) => item.type === "function_call");
      assert.deepEqual(JSON.parse(call.arguments), { city: "Paris" });
      input.push(...first.output, { type: "function_call_output", call_id: call.call_id, output: "sunny" });
      const second = await client.responses.create({ model, input, tools: responseTools });
      assert.ok(second.output_text);
    });

    test("responses, parsed", { skip }, async () => {
      const format = { text: { format: zodTextFormat(Person, "person") }, max_output_tokens: 1000 };
      const answer = await client.responses.parse({ model, input: "Alice is 30.", ...format });
      Person.parse(answer.output_parsed);
    });
  });
}
