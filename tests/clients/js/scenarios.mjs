// What the scenarios' users write with fal's JavaScript client, one function a case; prints one JSON document.
import { createFalClient } from "@fal-ai/client";
import { openAsBlob } from "node:fs";

const { OWNER, FAL_KEY, FAL_NB_URL } = process.env;
const PLACES = { "fal.run": "/run", "queue.fal.run": "/queue", "rest.fal.ai": "/rest", "rest.alpha.fal.ai": "/rest" };

const fal = createFalClient({
  credentials: FAL_KEY,
  suppressLocalCredentialsWarning: true,
  requestMiddleware: async (request) => {
    const url = new URL(request.url);
    return { ...request, url: `${FAL_NB_URL}${PLACES[url.host]}${url.pathname}${url.search}` };
  },
});

const WRITING = { prompt: "The class ", max_chars: 200, seed: 0, temperature: 0.7 };

const CASES = {
  // A2
  async embed() {
    const texts = ["Adults need 46 to 56 grams of protein daily.", "The Eiffel tower is in Paris.", "Cats sleep 15 hours a day."];
    const question = await fal.run(`${OWNER}/embed`, { input: { texts: ["how much protein per day"], kind: "query" } });
    const passages = await fal.subscribe(`${OWNER}/embed`, { input: { texts }, pollInterval: 50 });
    return { dim: passages.data.dim, question: question.data.vectors[0], passages: passages.data.vectors };
  },

  // A5
  async stream() {
    const began = performance.now();
    const stream = await fal.stream(`${OWNER}/writer`, { input: WRITING });
    const moments = new Set();
    let text = WRITING.prompt;
    let events = 0;
    for await (const event of stream) {
      moments.add(Math.round(performance.now() - began));
      text += event.text;
      events += 1;
    }
    return { text, events, moments: moments.size };
  },

  // A5: whoever aborts leaves
  async leave() {
    const stream = await fal.stream(`${OWNER}/writer`, { input: { ...WRITING, max_chars: 5000 } });
    let events = 0;
    for await (const event of stream) {
      if (event.text && ++events === 10) {
        stream.abort();
        break;
      }
    }
    const counts = [];
    const end = Date.now() + 10_000;
    while (Date.now() < end && !(counts.length > 5 && new Set(counts.slice(-6)).size === 1)) {
      counts.push((await fal.run(`${OWNER}/writer/written`, { input: {} })).data.count);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    return { counts };
  },

  // A7: a Blob in the input is uploaded by the client itself
  async upload(path) {
    const file = await openAsBlob(path);
    const result = await fal.subscribe(`${OWNER}/what-file`, { input: { file_url: file }, pollInterval: 50 });
    return { answer: result.data };
  },
};

console.log(JSON.stringify(await CASES[process.argv[2]](...process.argv.slice(3))));
process.exit(0);
