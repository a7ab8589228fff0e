// OpenAI's Agents SDK over responses and over chat: runs with tools, hand-offs, sessions, typed output, streams.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Agent, MemorySession, Runner, setTracingDisabled, tool } from "@openai/agents-core";
import { OpenAIProvider } from "@openai/agents-openai";
import OpenAI from "openai";
import { z } from "zod";
import { collect, five, url } from "./common.mjs";

setTracingDisabled(true);
const Answer = z.object({ ok: z.boolean(), size: z.enum(["small", "large"]) });
const openAIClient = new OpenAI({ baseURL: `${url}/v1`, apiKey: "-", maxRetries: 0 });

for (const useResponses of [true, false]) {
  const modelProvider = new OpenAIProvider({ openAIClient, useResponses });
  const runner = new Runner({ modelProvider, model: "tgi", modelSettings: { maxTokens: 64 } });

  describe(`@openai/agents, ${useResponses ? "responses" : "chat"}`, () => {
    const asked = [];
    const getWeather = tool({
      name: "get_weather",
      description: "Get the current weather in a city",
      parameters: z.object({ city: z.string() }),
      execute: async ({ city }) => (asked.push(city), "sunny, 21 degrees"),
    });
    const counter = new Agent({ name: "Counter", instructions: "You are a helpful assistant." });
    const forecaster = new Agent({ name: "Forecaster", tools: [getWeather] });

    test("a run", async () => {
      assert.equal((await runner.run(counter, "Count to 5")).finalOutput, five);
    });

    test("a run with a tool, streamed and not", async () => {
      asked.length = 0;
      const result = await runner.run(forecaster, "What is the weather in Paris?");
      assert.ok(result.finalOutput);
      const stream = await runner.run(forecaster, "What is the weather in Paris?", { stream: true });
      const events = await collect(stream);
      await stream.completed;
      assert.deepEqual(asked, ["Paris", "Paris"]);
      assert.ok(events.some((event) => event.type === "raw_model_stream_event" && event.data.type === "output_text_delta"));
      assert.ok(stream.finalOutput);
    });

    test("turns of a conversation, and a session", async () => {
      const first = await runner.run(counter, "Count to 5");
      const second = await runner.run(counter, [...first.history, { role: "user", content: "Count to 5" }]);
      assert.ok(second.finalOutput);
      const session = new MemorySession();
      for (let turn = 0; turn < 2; turn++) assert.ok((await runner.run(counter, "Count to 5", { session })).finalOutput);
    });

    test("typed output", async () => {
      const agent = new Agent({ name: "Typed", outputType: Answer });
      Answer.parse((await runner.run(agent, "Count to 5")).finalOutput);
    });

    test("a hand-off that is forced", async () => {
      const front = new Agent({
        name: "Front",
        handoffs: [counter],
        modelSettings: { toolChoice: "transfer_to_Counter", maxTokens: 64 },
      });
      const result = await runner.run(front, "Count to 5");
      assert.equal(result.lastAgent.name, "Counter");
      assert.ok(result.finalOutput);
    });
  });
}

test("@openai/agents goes on from a stored response", async () => {
  const modelProvider = new OpenAIProvider({ openAIClient, useResponses: true });
  const runner = new Runner({ modelProvider, model: "tgi" });
  const agent = new Agent({ name: "Counter" });
  const first = await runner.run(agent, "Count to 5");
  const second = await runner.run(agent, "Count to 5", { previousResponseId: first.lastResponseId });
  assert.ok(second.finalOutput);
});
