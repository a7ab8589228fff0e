// Gradio's own client against the page.
import assert from "node:assert/strict";
import { Client } from "@gradio/client";
import { five, url } from "./common.mjs";

const app = await Client.connect(url, { events: ["data", "status"] });
const { named_endpoints } = await app.view_api();
assert.ok("/chat" in named_endpoints);
const question = { message: "Count to 5" };
const answer = await app.predict("/chat", question);
assert.ok(JSON.stringify(answer.data).includes(five));
const texts = [];
for await (const event of app.submit("/chat", question)) {
  if (event.type === "data") texts.push(JSON.stringify(event.data));
  if (event.type === "status" && event.stage === "complete") break;
}
assert.ok(texts.length > 1 && texts.at(-1).includes(five));
// The client keeps its heartbeat open, and node would wait for it.
process.exit(0);
