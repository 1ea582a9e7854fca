// The official client of Node over a gateway: `node use_openai.mjs BASE_URL KEY` prints what a
// user gets.

import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { raised, report } from "./report.mjs";

const [baseURL, key] = process.argv.slice(2);
const model = "qwen-max-latest";
const HELLO = [{ role: "user", content: "Hello" }];
const WEATHER = [{ role: "user", content: "Weather in Paris and Rome?" }];
const WHICH = [{ role: "user", content: "Which city is it?" }];
const City = z.object({ name: z.string(), people: z.number() });
const Asked = z.object({ city: z.string(), unit: z.enum(["c", "f"]) });
const getWeather = {
  name: "get_weather",
  description: "Tells the weather of a city.",
  parameters: Asked,
};
const tell = ({ city, unit }) => `${city}: ${{ c: 21, f: 70 }[unit]} degrees ${unit}`;

const client = (apiKey = key) => new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const { completions } = client().chat;

async function plain() {
  const answer = await completions.create({ model, messages: HELLO });
  const [choice] = answer.choices;
  const { total_tokens: usage } = answer.usage;
  return { text: choice.message.content, reason: choice.finish_reason, usage };
}

async function streamed() {
  const stream = await completions.create({
    model,
    messages: HELLO,
    stream: true,
    stream_options: { include_usage: true },
  });
  const got = { pieces: [] };
  for await (const chunk of stream) {
    const [choice] = chunk.choices;
    if (choice?.delta.content) got.pieces.push(choice.delta.content);
    got.reason = choice?.finish_reason ?? got.reason;
    got.usage = chunk.usage?.total_tokens;
  }
  return got;
}

async function tools() {
  const calls = [];
  const tool = zodFunction({
    ...getWeather,
    function(asked) {
      calls.push(["get_weather", asked]);
      return tell(asked);
    },
  });
  const runner = completions.runTools({ model, messages: WEATHER, tools: [tool] });
  return { text: await runner.finalContent(), calls };
}

async function streamed_tools() {
  const got = { calls: [], fragments: 0, pieces: [] };
  const tool = zodFunction({
    ...getWeather,
    function(asked) {
      got.calls.push(["get_weather", asked]);
      return tell(asked);
    },
  });
  const runner = completions.runTools({ model, messages: WEATHER, tools: [tool], stream: true });
  for await (const chunk of runner) {
    const [choice] = chunk.choices;
    got.fragments += choice?.delta.tool_calls?.length ?? 0;
    if (choice?.delta.content) got.pieces.push(choice.delta.content);
  }
  return got;
}

async function structured() {
  const response_format = zodResponseFormat(City, "city");
  const answer = await completions.parse({ model, messages: WHICH, response_format });
  return answer.choices[0].message.parsed;
}

async function structured_by_a_tool() {
  const tool = zodFunction({ name: "city", parameters: City });
  const tool_choice = { type: "function", function: { name: "city" } };
  const answer = await completions.parse({ model, messages: WHICH, tools: [tool], tool_choice });
  return answer.choices[0].message.tool_calls[0].function.parsed_arguments;
}

async function structured_and_streamed() {
  const response_format = zodResponseFormat(City, "city");
  const stream = completions.stream({ model, messages: WHICH, response_format });
  let parts = 0;
  stream.on("content.delta", () => (parts += 1));
  const final = await stream.finalChatCompletion();
  return { parts, object: final.choices[0].message.parsed };
}

async function unknown_model() {
  await completions.create({ model: "gpt-4o", messages: HELLO });
}

async function wrong_key() {
  await client("wrong").chat.completions.create({ model, messages: HELLO });
}

async function broken_off() {
  const messages = [{ role: "user", content: "simulate: truncate" }];
  const pieces = [];
  try {
    for await (const chunk of await completions.create({ model, messages, stream: true })) {
      pieces.push(chunk.choices[0]?.delta.content);
    }
  } catch (error) {
    return { pieces, ...raised(error) };
  }
  return { pieces };
}

await report(
  plain,
  streamed,
  tools,
  streamed_tools,
  structured,
  structured_by_a_tool,
  structured_and_streamed,
  unknown_model,
  wrong_key,
  broken_off,
);
