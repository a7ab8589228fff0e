// Vercel's AI SDK in two majors with three providers, which hold every answer and event to schemas of their own.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { z } from "zod/v4";
import { collect, count, five, joined, url, weatherQuestion } from "./common.mjs";

const Answer = z.object({ ok: z.boolean(), size: z.enum(["small", "large"]) });
const baseURL = `${url}/v1`;

for (const [major, sdk, openai, compatible, anthropic] of [
  [6, "ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic"],
  [7, "ai-7", "@ai-sdk/openai-4", "@ai-sdk/openai-compatible-3", "@ai-sdk/anthropic-4"],
]) {
  const { generateText, Output, stepCountIs, isStepCount, streamText, tool } = await import(sdk);
  const { createOpenAI } = await import(openai);
  const { createOpenAICompatible } = await import(compatible);
  const { createAnthropic } = await import(anthropic);
  const steps = (isStepCount ?? stepCountIs)(4);
  const byOpenAI = createOpenAI({ baseURL, apiKey: "-" });
  const byCompatible = createOpenAICompatible({
    name: "tgi-local",
    baseURL,
    apiKey: "-",
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
  const models = {
    "openai chat": byOpenAI.chat("tgi"),
    "openai responses": byOpenAI("tgi"),
    "openai-compatible": byCompatible("tgi"),
    anthropic: createAnthropic({ baseURL, apiKey: "-" })("tgi"),
  };

  for (const [name, model] of Object.entries(models)) {
    const common = { model, maxRetries: 0, maxOutputTokens: 64 };
    const weather = (asked) =>
      tool({
        description: "Get the current weather in a city",
        inputSchema: z.object({ city: z.string() }),
        execute: async ({ city }) => (asked.push(city), "sunny, 21 degrees"),
      });

    describe(`ai ${major}, ${name}`, () => {
      test("generateText", async () => {
        const answer = await generateText({ ...common, messages: count });
        assert.equal(answer.text, five);
        assert.equal(answer.finishReason, "stop");
        assert.ok(answer.usage.inputTokens > 0 && answer.usage.outputTokens > 5);
        assert.deepEqual(answer.warnings ?? [], []);
        const settled = await generateText({ ...common, prompt: "Count to 5", temperature: 0, topP: 1 });
        assert.equal(settled.text, five);
      });

      test("streamText", async () => {
        const errors = [];
        const stream = streamText({ ...common, messages: count, onError: ({ error }) => errors.push(error) });
        assert.equal((await collect(stream.textStream)).join(""), five);
        assert.equal(await stream.finishReason, "stop");
        assert.ok((await stream.totalUsage).outputTokens > 5);
        assert.deepEqual(errors, []);
      });

      test("a conversation", async () => {
        const messages = [
          ...count,
          { role: "assistant", content: [{ type: "text", text: five }] },
          { role: "user", content: [{ type: "text", text: "Count to 5" }] },
        ];
        const first = await generateText({ ...common, instructions: undefined, messages });
        assert.ok(first.text);
        const second = await generateText({ ...common, messages: [...messages, ...first.response.messages, ...count] });
        assert.ok(second.text);
      });

      test("tools over several steps", async () => {
        const asked = [];
        const answer = await generateText({
          ...common,
          messages: weatherQuestion,
          tools: { get_weather: weather(asked) },
          stopWhen: steps,
        });
        assert.deepEqual(asked, ["Paris"]);
        assert.equal(answer.steps.length, 2);
        assert.equal(answer.steps[0].finishReason, "tool-calls");
        assert.ok(answer.text);
      });

      test("tools over several steps, streamed", async () => {
        const asked = [];
        const errors = [];
        const stream = streamText({
          ...common,
          messages: weatherQuestion,
          tools: { get_weather: weather(asked) },
          stopWhen: steps,
          onError: ({ error }) => errors.push(error),
        });
        const parts = await collect(stream.fullStream);
        assert.deepEqual(errors, []);
        assert.deepEqual(asked, ["Paris"]);
        const kinds = new Set(parts.map((part) => part.type));
        for (const kind of ["tool-input-start", "tool-input-delta", "tool-input-end", "tool-call", "tool-result", "text-delta"]) {
          assert.ok(kinds.has(kind), kind);
        }
        assert.ok(await stream.text);
      });

      test("forced tools", async () => {
        for (const toolChoice of ["required", { type: "tool", toolName: "get_weather" }]) {
          const answer = await generateText({ ...common, messages: weatherQuestion, tools: { get_weather: weather([]) }, toolChoice });
          assert.equal(answer.toolCalls[0].toolName, "get_weather");
        }
        const none = await generateText({ ...common, messages: count, tools: { get_weather: weather([]) }, toolChoice: "none" });
        assert.equal(none.toolCalls.length, 0);
      });

      test("objects", async () => {
        const output = Output.object({ schema: Answer });
        Answer.parse((await generateText({ ...common, messages: count, output })).output);
        const stream = streamText({ ...common, messages: count, output });
        await collect(stream.partialOutputStream);
        Answer.parse(await stream.output);
        const choice = Output.choice({ options: ["sunny", "rainy"] });
        assert.match((await generateText({ ...common, messages: count, output: choice })).output, /sunny|rainy/);
      });

      test("stop sequences", async () => {
        if (name === "openai responses") return; // which has none
        const answer = await generateText({ ...common, messages: count, stopSequences: [", 4"] });
        assert.equal(answer.text, "1, 2, 3");
      });

      test("errors and abort", async () => {
        await assert.rejects(generateText({ ...common, messages: count, topP: 7 }), (error) => {
          assert.equal(error.statusCode, 400);
          assert.match(error.message, /top_p/);
          return true;
        });
        const controller = new AbortController();
        const stream = streamText({
          ...common,
          maxOutputTokens: 1500,
          messages: [{ role: "user", content: "Tell me a story" }],
          abortSignal: controller.signal,
          onError: () => {},
        });
        let read = 0;
        try {
          for await (const part of stream.fullStream) if (part.type === "text-delta" && ++read === 2) controller.abort();
        } catch {
          // Some versions end the stream with the error, others with a part that says so.
        }
        assert.ok(read < 1000, `${read} parts`);
      });
    });
  }

  describe(`ai ${major}, completions`, () => {
    for (const model of [byOpenAI.completion("tgi"), byCompatible.completionModel("tgi")]) {
      test(model.provider, async () => {
        const answer = await generateText({ model, prompt: "What is Deep Learning?", maxOutputTokens: 8, maxRetries: 0 });
        assert.ok(answer.text);
        const stream = streamText({ model, prompt: "What is Deep Learning?", maxOutputTokens: 8, maxRetries: 0 });
        assert.ok(joined(await collect(stream.textStream), (text) => text));
        assert.match(await stream.finishReason, /length|stop/);
      });
    }
  });
}
