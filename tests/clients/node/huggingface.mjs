// @huggingface/inference in three majors: versions 2 and 3 post text generation to /, version 4 to /v1/completions.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { collect, count, five, getWeather, joined, url, weatherQuestion } from "./common.mjs";

const inputs = "What is Deep Learning?";
const greedy = { max_new_tokens: 8, do_sample: false };
const textOf = (chunks) => joined(chunks, (chunk) => chunk.choices[0]?.delta.content);

async function native(path, parameters) {
  const body = JSON.stringify({ inputs, parameters });
  return (await fetch(url + path, { method: "POST", headers: { "content-type": "application/json" }, body })).json();
}
const expected = (await native("/generate", greedy)).generated_text;

for (const name of ["@huggingface/inference-2", "@huggingface/inference-3", "@huggingface/inference"]) {
  const { HfInference, InferenceClient = HfInference } = await import(name);
  const isFirst = name.endsWith("-2");
  const isLast = name === "@huggingface/inference";
  const client = new InferenceClient("hf_token");
  // Version 2 asks the hub for a model unless one is named; later ones send the address as the name.
  const target = isFirst ? { endpointUrl: url, model: "tgi" } : { endpointUrl: url };

  describe(name, () => {
    test("text generation", async () => {
      const answer = await client.textGeneration({ ...target, inputs, parameters: { ...greedy, return_full_text: false } });
      assert.equal(answer.generated_text, expected);
      const full = await client.textGeneration({ ...target, inputs, parameters: { ...greedy, return_full_text: true } });
      assert.equal(full.generated_text, inputs + expected);
    });

    test("text generation with TGI's parameters", async () => {
      const parameters = {
        max_new_tokens: 6,
        temperature: 0.7,
        top_k: 1,
        top_p: 0.9,
        typical_p: 0.9,
        repetition_penalty: 1.1,
        frequency_penalty: 0.1,
        seed: 3,
        stop: ["never said"],
        truncate: 50,
        watermark: false,
        details: true,
        decoder_input_details: true,
        return_full_text: false,
      };
      const [one, two] = await Promise.all([1, 2].map(() => client.textGeneration({ ...target, inputs, parameters })));
      assert.ok(one.generated_text);
      assert.deepEqual(one.generated_text, two.generated_text);
      const constrained = await client.textGeneration({
        ...target,
        inputs,
        parameters: { max_new_tokens: 40, return_full_text: false, grammar: { type: "regex", value: "[0-9]{3}" } },
      });
      assert.match(constrained.generated_text, /^[0-9]{3}$/);
    });

    test("an endpoint and a model given as an address", async () => {
      const endpoint = client.endpoint(url);
      if (!isFirst) {
        const answer = await endpoint.textGeneration({ inputs, parameters: { ...greedy, return_full_text: false } });
        assert.equal(answer.generated_text, expected);
        const chat = await endpoint.chatCompletion({ messages: count });
        assert.equal(chat.choices[0].message.content, five);
      } else {
        const answer = await client.textGeneration({ model: url, inputs, parameters: { ...greedy, return_full_text: false } });
        assert.equal(answer.generated_text, expected);
      }
    });

    test("text generation, streamed", async () => {
      const parameters = { ...greedy, return_full_text: false, details: true };
      const events = await collect(client.textGenerationStream({ ...target, inputs, parameters }));
      if (isLast) {
        assert.equal(joined(events, (event) => event.choices[0].text), expected);
        return;
      }
      assert.equal(joined(events, (event) => event.token.text), expected);
      assert.equal(events.at(-1).generated_text, expected);
      assert.equal(events.at(-1).details.generated_tokens, events.length);
      assert.ok(events.slice(0, -1).every((event) => event.generated_text === null));
    });

    test("chat", async () => {
      for (const place of [target, { ...target, endpointUrl: `${url}/v1` }]) {
        if (isFirst && place !== target) continue; // it knows no other place than the root
        const answer = await client.chatCompletion({ ...place, messages: count });
        assert.equal(answer.choices[0].message.content, five);
      }
      const answer = await client.chatCompletion({ ...target, model: "tgi", messages: count, max_tokens: 3, seed: 1, temperature: 0.5 });
      assert.equal(answer.choices[0].finish_reason, "length");
    });

    test("chat, streamed", async () => {
      const chunks = await collect(client.chatCompletionStream({ ...target, messages: count, max_tokens: 60 }));
      assert.equal(textOf(chunks), five);
      assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
    });

    test("chat with tools and a response format", async () => {
      const tools = [{ type: "function", function: getWeather }];
      const answer = await client.chatCompletion({ ...target, messages: weatherQuestion, tools, tool_choice: "auto" });
      assert.equal(answer.choices[0].message.tool_calls[0].function.name, "get_weather");
      const schema = { type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"], additionalProperties: false };
      for (const response_format of [
        { type: "json", value: schema },
        { type: "json_schema", json_schema: { name: "answer", schema, strict: true } },
      ]) {
        const held = await client.chatCompletion({ ...target, messages: count, response_format, max_tokens: 60 });
        assert.equal(typeof JSON.parse(held.choices[0].message.content).ok, "boolean");
      }
    });

    test("errors", async () => {
      const wrong = { ...target, inputs, parameters: { temperature: -1, max_new_tokens: 3 } };
      await assert.rejects(client.textGeneration(wrong), /temperature|HTTP error|Expected/);
      await assert.rejects(collect(client.textGenerationStream(wrong)), /temperature/);
      const chat = { ...target, messages: count, temperature: -1 };
      // Version 2 shows an error that is an object as "[object Object]".
      await assert.rejects(client.chatCompletion(chat), isFirst ? /chat completion/ : /temperature|HTTP error/);
      await assert.rejects(collect(client.chatCompletionStream(chat)), isFirst ? /chat completion/ : /temperature/);
    });

    test("abort", async () => {
      const controller = new AbortController();
      const options = { signal: controller.signal };
      const asked = { ...target, messages: count, max_tokens: 1500, ignore_eos: true };
      let read = 0;
      await assert.rejects(async () => {
        for await (const _ of client.chatCompletionStream(asked, options)) if (++read === 3) controller.abort();
      }, /abort/i);
      assert.ok(read < 1000, `${read} chunks`);
    });
  });
}
