// What people write with fal's JavaScript client, one function a case; prints one JSON document. WAY says how the
// client is pointed at a backend: `middleware` rewrites each address, `proxy` sends all to one that is told the address.
import { createFalClient } from "@fal-ai/client";

const { OWNER, FAL_KEY, FAL_NB_URL, WAY } = process.env;
const APP = `${OWNER}/clients`;

const PLACES = {
  "fal.run": "/run",
  "queue.fal.run": "/queue",
  "rest.fal.ai": "/rest",
  "rest.alpha.fal.ai": "/rest",
};

function here(address) {
  const url = new URL(address);
  return `${FAL_NB_URL}${PLACES[url.host]}${url.pathname}${url.search}`;
}

const WAYS = {
  middleware: { requestMiddleware: async (request) => ({ ...request, url: here(request.url) }) },
  proxy: { proxyUrl: { url: `${FAL_NB_URL}/api/fal/proxy`, when: "always" } },
};

const fal = createFalClient({ credentials: FAL_KEY, suppressLocalCredentialsWarning: true, ...WAYS[WAY] });

async function failure(work) {
  try {
    return { answered: await work() };
  } catch (error) {
    const { name, status, body, requestId } = error;
    return { name, status, detail: body?.detail, requestId, isUserTimeout: error.isUserTimeout };
  }
}

const CASES = {
  async run() {
    const root = await fal.run(APP, { input: { x: 2 } });
    const path = await fal.run(`${APP}/sub/path`, { input: { x: 2 } });
    return { root: root.data, path: path.data, requestId: root.requestId };
  },

  async queue() {
    const { request_id: requestId } = await fal.queue.submit(APP, { input: { x: 3 }, priority: "low", hint: "here" });
    const before = await fal.queue.status(APP, { requestId, logs: true });
    const done = await fal.queue.subscribeToStatus(APP, { requestId, logs: true, pollInterval: 50 });
    const result = await fal.queue.result(APP, { requestId });
    return {
      requestId,
      before: before.status,
      after: done.status,
      logs: done.logs.map((line) => line.message),
      data: result.data,
      resultId: result.requestId,
    };
  },

  async cancel() {
    const { request_id: requestId } = await fal.queue.submit(`${APP}/slow`, { input: {} });
    for (;;) {
      const now = await fal.queue.status(APP, { requestId, logs: true });
      if (now.status === "IN_PROGRESS" && now.logs?.length) break;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await fal.queue.cancel(APP, { requestId });
    const done = await fal.queue.subscribeToStatus(APP, { requestId, pollInterval: 50 });
    return { done: done.status, result: await failure(() => fal.queue.result(APP, { requestId })) };
  },

  async polling() {
    const seen = [];
    const onQueueUpdate = (update) => seen.push(update.status);
    const options = { input: { x: 5 }, logs: true, pollInterval: 50, mode: "polling", onQueueUpdate };
    const result = await fal.subscribe(APP, options);
    return { data: result.data, last: seen.at(-1), requestId: result.requestId };
  },

  async streaming() {
    const seen = [];
    const lines = [];
    const result = await fal.subscribe(APP, {
      input: { x: 6 },
      logs: true,
      mode: "streaming",
      onQueueUpdate: (update) => {
        seen.push(update.status);
        lines.splice(0, lines.length, ...(update.logs ?? []).map((line) => line.message));
      },
    });
    return { data: result.data, last: seen.at(-1), lines };
  },

  async stream() {
    const stream = await fal.stream(APP, { input: { x: 3 } });
    const events = [];
    for await (const event of stream) events.push(event);
    return { events, last: await stream.done() };
  },

  async upload() {
    const url = await fal.storage.upload(new Blob(["seven!!"], { type: "text/plain" }));
    const read = await fetch(url);
    return { url, type: read.headers.get("content-type"), text: await read.text() };
  },

  // Its address has no hook: the global WebSocket is replaced, and the token comes from where the page's server is.
  async realtime() {
    const Plain = globalThis.WebSocket;
    globalThis.WebSocket = class extends Plain {
      constructor(address) {
        super(address.replace("wss://fal.run", `${FAL_NB_URL.replace("http", "ws")}/run`));
      }
    };
    const tokenProvider = async (app) => {
      const body = JSON.stringify({ allowed_apps: [app.split("/")[1]], token_expiration: 120 });
      const headers = { authorization: `Key ${FAL_KEY}`, "content-type": "application/json" };
      return (await fetch(`${FAL_NB_URL}/rest/tokens/`, { method: "POST", headers, body })).json();
    };
    const answers = [];
    await new Promise((resolve, reject) => {
      const live = fal.realtime.connect(APP, {
        tokenProvider,
        throttleInterval: 0,
        onError: reject,
        onResult: (result) => {
          answers.push(result.y);
          if (answers.length === 3) {
            live.close();
            resolve();
          } else {
            live.send({ x: answers.length + 1 });
          }
        },
      });
      live.send({ x: 1 });
    });
    return { answers };
  },

  async invalid() {
    const { request_id: requestId } = await fal.queue.submit(APP, { input: { x: "two" } });
    await fal.queue.subscribeToStatus(APP, { requestId, pollInterval: 50 });
    return { requestId, ...(await failure(() => fal.queue.result(APP, { requestId }))) };
  },

  async waits_too_long() {
    const held = `${OWNER}/held`;
    const first = await fal.queue.submit(held, { input: { x: 6 } });
    const late = await fal.queue.submit(held, { input: { x: 0 }, startTimeout: 1.5 });
    await fal.queue.subscribeToStatus(held, { requestId: late.request_id, pollInterval: 50 });
    const told = await failure(() => fal.queue.result(held, { requestId: late.request_id }));
    await fal.queue.cancel(held, { requestId: first.request_id });
    return told;
  },
};

console.log(JSON.stringify(await CASES[process.argv[2]]()));
process.exit(0);
