// Vercel's AI SDK over a gateway: `node use_ai_sdk.mjs BASE_URL KEY` prints what a user gets.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  generateObject,
  generateText,
  Output,
  stepCountIs,
  streamObject,
  streamText,
  tool,
} from "ai";
import { z } from "zod";

import { raised, report } from "./report.mjs";

const [baseURL, key] = process.argv.slice(2);
const City = z.object({ name: z.string(), people: z.number() });
const get_weather = tool({
  description: "Tells the weather of a city.",
  inputSchema: z.object({ city: z.string(), unit: z.enum(["c", "f"]) }),
  execute: ({ city, unit }) => `${city}: ${{ c: 21, f: 70 }[unit]} degrees ${unit}`,
});

function asking(prompt, { name = "qwen-max-latest", apiKey = key, ...options } = {}) {
  const provider = createOpenAICompatible({
    name: "qwen",
    baseURL,
    apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
  // It prints the errors of a stream unless it is told what to do with them.
  return { model: provider(name), prompt, maxRetries: 0, onError() {}, ...options };
}

const withTools = { tools: { get_weather }, stopWhen: stepCountIs(3) };
const callsIn = (steps) =>
  steps.flatMap((step) => step.toolCalls.map((call) => [call.toolName, call.input]));

async function plain() {
  const { text, finishReason: reason, usage } = await generateText(asking("Hello"));
  return { text, reason, usage: usage.totalTokens };
}

async function streamed() {
  const result = streamText(asking("Hello"));
  const pieces = [];
  for await (const piece of result.textStream) pieces.push(piece);
  return { pieces, reason: await result.finishReason, usage: (await result.usage).totalTokens };
}

async function tools() {
  const { steps, text } = await generateText(asking("Weather in Paris and Rome?", withTools));
  return { calls: callsIn(steps), text };
}

async function streamed_tools() {
  const result = streamText(asking("Weather in Paris and Rome?", withTools));
  const pieces = [];
  let fragments = 0;
  for await (const part of result.fullStream) {
    if (part.type === "tool-input-delta") fragments += 1;
    if (part.type === "text-delta" && part.text) pieces.push(part.text);
    if (part.type === "error") throw part.error;
  }
  return { calls: callsIn(await result.steps), fragments, pieces };
}

async function structured() {
  const { object } = await generateObject(asking("Which city is it?", { schema: City }));
  return object;
}

async function structured_with_text() {
  const output = Output.object({ schema: City });
  return (await generateText(asking("Which city is it?", { output }))).output;
}

async function structured_and_streamed() {
  const result = streamObject(asking("Which city is it?", { schema: City }));
  let parts = 0;
  for await (const _ of result.partialObjectStream) parts += 1;
  return { parts, object: await result.object };
}

async function thinking() {
  const providerOptions = { qwen: { enable_thinking: true } };
  const { reasoningText, text } = await generateText(asking("Hello", { providerOptions }));
  return { thoughts: reasoningText, text };
}

async function streamed_thinking() {
  const providerOptions = { qwen: { enable_thinking: true } };
  const result = streamText(asking("Hello", { providerOptions }));
  return { thoughts: await result.reasoningText, text: await result.text };
}

async function unknown_model() {
  await generateText(asking("Hello", { name: "gpt-4o" }));
}

async function wrong_key() {
  await generateText(asking("Hello", { apiKey: "wrong" }));
}

async function broken_off() {
  const pieces = [];
  for await (const part of streamText(asking("simulate: truncate")).fullStream) {
    // This is the error object of the gateway, as it came.
    if (part.type === "error") return { pieces, ...raised(part.error) };
    if (part.type === "text-delta") pieces.push(part.text);
  }
  return { pieces };
}

await report(
  plain,
  streamed,
  tools,
  streamed_tools,
  structured,
  structured_with_text,
  structured_and_streamed,
  thinking,
  streamed_thinking,
  unknown_model,
  wrong_key,
  broken_off,
);
