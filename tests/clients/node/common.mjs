// What the programs share: the server's address, and the conversations that the built-in model knows by heart.
export const url = process.argv[2];

export const count = [{ role: "user", content: "Count to 5" }];
export const five = "1, 2, 3, 4, 5";
export const weatherQuestion = [{ role: "user", content: "What is the weather in Paris?" }];
export const getWeather = {
  name: "get_weather",
  description: "Get the current weather in a city",
  parameters: {
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
    additionalProperties: false,
  },
};

export async function collect(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

export const joined = (items, read) => items.map((item) => read(item) ?? "").join("");
