// LangChain's ChatOpenAI over chat and over responses, and OpenAI over completions.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { JsonOutputParser, StringOutputParser } from "@langchain/core/output_parsers";
import { ChatPromptTemplate } from "@langchain/core/prompts";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAI } from "@langchain/openai";
import { z } from "zod";
import { collect, five, joined, url } from "./common.mjs";

globalThis.crypto ??= (await import("node:crypto")).webcrypto; // node 18 keeps it there

const configuration = { baseURL: `${url}/v1` };
const Answer = z.object({ ok: z.boolean(), size: z.enum(["small", "large"]) });
const getWeather = tool(async ({ city }) => `sunny in ${city}`, {
  name: "get_weather",
  description: "Get the current weather in a city",
  schema: z.object({ city: z.string() }),
});

for (const useResponsesApi of [false, true]) {
  describe(`ChatOpenAI, ${useResponsesApi ? "responses" : "chat"}`, () => {
    const options = { model: "tgi", apiKey: "-", configuration, useResponsesApi, maxRetries: 0, maxTokens: 64 };
    const model = new ChatOpenAI(options);

    test("invoke, batch and a chain", async () => {
      const answer = await model.invoke([new SystemMessage("You are a helpful assistant."), new HumanMessage("Count to 5")]);
      assert.equal(answer.text, five);
      assert.ok(answer.usage_metadata.output_tokens > 5);
      const both = await model.batch(["Count to 5", "Count to 5"]);
      assert.deepEqual(both.map((one) => one.text), [five, five]);
      const chain = ChatPromptTemplate.fromTemplate("Count to {n}").pipe(model).pipe(new StringOutputParser());
      assert.equal(await chain.invoke({ n: 5 }), five);
    });

    test("stream", async () => {
      const chunks = await collect(await model.stream("Count to 5"));
      assert.equal(joined(chunks, (chunk) => chunk.text), five);
      const whole = chunks.reduce((sum, chunk) => sum.concat(chunk));
      assert.ok(whole.usage_metadata.output_tokens > 5);
      const events = await collect(model.streamEvents("Count to 5", { version: "v2" }));
      assert.equal(joined(events, (event) => (event.event === "on_chat_model_stream" ? event.data.chunk.text : "")), five);
    });

    test("tools and their results", async () => {
      const bound = model.bindTools([getWeather]);
      const question = new HumanMessage("What is the weather in Paris?");
      const asked = await bound.invoke([question]);
      assert.equal(asked.tool_calls.length, 1);
      assert.deepEqual(asked.tool_calls[0].args, { city: "Paris" });
      const result = await getWeather.invoke(asked.tool_calls[0]);
      assert.ok(result instanceof ToolMessage);
      assert.ok((await bound.invoke([question, asked, result])).text);
      const streamed = (await collect(await bound.stream([question]))).reduce((sum, chunk) => sum.concat(chunk));
      assert.deepEqual(streamed.tool_calls[0].args, { city: "Paris" });
      for (const tool_choice of ["required", "get_weather", "any"]) {
        const forced = await model.bindTools([getWeather], { tool_choice }).invoke([question]);
        assert.equal(forced.tool_calls[0].name, "get_weather");
      }
    });

    test("structured output", async () => {
      for (const method of ["jsonSchema", "functionCalling"]) {
        Answer.parse(await model.withStructuredOutput(Answer, { method, name: "answer" }).invoke("Count to 5"));
      }
      const strict = await model.withStructuredOutput(Answer, { strict: true, includeRaw: true }).invoke("Count to 5");
      Answer.parse(strict.parsed);
      const chain = model.withStructuredOutput(Answer, { method: "jsonSchema" });
      Answer.parse((await collect(await chain.stream("Count to 5"))).at(-1));
    });

    test("errors", async () => {
      await assert.rejects(new ChatOpenAI({ ...options, temperature: -1 }).invoke("Hi"), /temperature/);
    });
  });
}

describe("ChatOpenAI, its own options", () => {
  test("stop, n, logprobs, JSON mode", async () => {
    const model = new ChatOpenAI({ model: "tgi", apiKey: "-", configuration, logprobs: true, topLogprobs: 2, n: 2, temperature: 0 });
    const answer = await model.invoke("Count to 5", { stop: [", 4"] });
    assert.equal(answer.text, "1, 2, 3");
    assert.ok(answer.response_metadata.logprobs.content.length > 4);
    const json = new ChatOpenAI({ model: "tgi", apiKey: "-", configuration, temperature: 0, maxTokens: 200 });
    const schema = { type: "json_schema", json_schema: { name: "answer", schema: { type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"], additionalProperties: false } } };
    const held = await json.withConfig({ response_format: schema }).pipe(new JsonOutputParser()).invoke("Count to 5");
    assert.equal(typeof held.ok, "boolean");
  });
});

describe("OpenAI, completions", () => {
  test("invoke and stream", async () => {
    const model = new OpenAI({ model: "tgi", apiKey: "-", configuration, maxTokens: 8, maxRetries: 0, temperature: 0 });
    const whole = await model.invoke("What is Deep Learning?");
    assert.ok(whole);
    assert.equal((await collect(await model.stream("What is Deep Learning?"))).join(""), whole);
    const several = await model.generate(["a", "b"]);
    assert.equal(several.generations.length, 2);
  });
});
