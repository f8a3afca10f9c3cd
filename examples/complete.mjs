// A completion from Node 18+, without a package: node examples/complete.mjs [MODEL] [PROMPT]
import { readFileSync } from "node:fs";

const [model = "seedling", prompt = "Everyone has the right to"] = process.argv.slice(2);
const address = process.env.ANTHESIS_GATEWAY_HTTP_ADDRESS ?? "127.0.0.1:8080";
const data = process.env.ANTHESIS_DATA ?? ".anthesis";
const key = process.env.ANTHESIS_API_KEY ?? readFileSync(`${data}/keys/admin.key`, "utf8").trim();

const response = await fetch(`http://${address}/v1/completions`, {
  method: "POST",
  headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
  body: JSON.stringify({ model, prompt, max_tokens: 64, temperature: 0.7 }),
});
const answer = await response.json();
if (!response.ok) throw new Error(answer.error?.message ?? response.statusText);
console.log(prompt + answer.choices[0].text);
