// One request from the playground: sent, streamed, answered; a reducer and the sender.
import { readEvents } from '../api/sse';
import { OfflineError, type Transport } from '../api/transport';

/** An answer's body as the result side can show it. */
export type Body =
  | { kind: 'json'; value: unknown; text: string }
  | { kind: 'text'; text: string }
  | { kind: 'stream'; text: string; chunks: number; isJson: boolean }
  | { kind: 'media'; url: string; type: string; size: number }
  | { kind: 'none' };

/** How a request stands. */
export interface RequestState {
  phase: 'idle' | 'running' | 'streaming' | 'done' | 'cancelled' | 'offline';
  startedAt: number;
  /** ms until the answer's head, and until its end. */
  headAfter: number | null;
  endedAfter: number | null;
  status: number | null;
  requestId: string | null;
  revision: string | null;
  runnerId: string | null;
  errorType: string | null;
  /** Times that the server measured, in ms. */
  timings: { name: string; ms: number }[];
  body: Body;
  /** The one image that went in, to be compared with what came out. */
  image: string | null;
  offline: OfflineError | null;
}

export type RequestAction =
  | { type: 'sent'; at: number; image: string | null }
  | { type: 'head'; at: number; response: Response; isStream: boolean }
  | { type: 'chunk'; text: string; isJson: boolean }
  | { type: 'body'; at: number; body: Body }
  | { type: 'ended'; at: number }
  | { type: 'cancelled'; at: number }
  | { type: 'offline'; at: number; reason: OfflineError };

export const NO_REQUEST: RequestState = {
  phase: 'idle',
  startedAt: 0,
  headAfter: null,
  endedAfter: null,
  status: null,
  requestId: null,
  revision: null,
  runnerId: null,
  errorType: null,
  timings: [],
  body: { kind: 'none' },
  image: null,
  offline: null
};

/** Return the request after one action. */
export function reduceRequest(state: RequestState, action: RequestAction): RequestState {
  switch (action.type) {
    case 'sent':
      return { ...NO_REQUEST, phase: 'running', startedAt: action.at, image: action.image };
    case 'head':
      return { ...state, ...readHead(action.response), phase: action.isStream ? 'streaming' : 'running', headAfter: action.at - state.startedAt };
    case 'chunk': {
      const before = state.body.kind === 'stream' ? state.body : { text: '', chunks: 0 };
      const body: Body = { kind: 'stream', text: before.text + action.text, chunks: before.chunks + 1, isJson: action.isJson };
      return { ...state, body };
    }
    case 'body':
      return { ...state, phase: 'done', body: action.body, endedAfter: action.at - state.startedAt };
    case 'ended':
      return { ...state, phase: 'done', endedAfter: action.at - state.startedAt };
    case 'cancelled':
      return { ...state, phase: 'cancelled', endedAfter: action.at - state.startedAt };
    case 'offline':
      return { ...state, phase: 'offline', endedAfter: action.at - state.startedAt, offline: action.reason };
  }
}

function readHead(response: Response): Partial<RequestState> {
  const header = (name: string): string | null => response.headers.get(name);
  return {
    status: response.status,
    requestId: header('x-fal-request-id'),
    revision: header('x-fal-revision'),
    runnerId: header('x-fal-runner-id'),
    errorType: header('x-fal-error-type'),
    timings: readTimings(header('server-timing') ?? '')
  };
}

/** Read `queue;dur=0.2, run;dur=5.3`. Source: W3C Server Timing. */
export function readTimings(text: string): { name: string; ms: number }[] {
  return text
    .split(',')
    .map(part => /^\s*([\w-]+)\s*;.*?dur=([\d.]+)/.exec(part))
    .filter(match => match !== null)
    .map(match => ({ name: String(match[1]), ms: Number(match[2]) }));
}

/** A call that is ready to be sent. */
export interface Call {
  path: string;
  method: string;
  body: string | undefined;
  image: string | null;
}

/** Send a call and report what comes back; returns how to leave it. */
export function send(transport: Transport, call: Call, dispatch: (action: RequestAction) => void): () => void {
  const stop = new AbortController();
  dispatch({ type: 'sent', at: performance.now(), image: call.image });
  void run(transport, call, dispatch, stop.signal);
  return () => stop.abort();
}

async function run(transport: Transport, call: Call, dispatch: (action: RequestAction) => void, signal: AbortSignal): Promise<void> {
  const headers: Record<string, string> = { accept: '*/*' };
  if (call.body !== undefined) {
    headers['content-type'] = 'application/json';
  }
  try {
    const response = await transport.call(call.path, { method: call.method, headers, body: call.body, signal });
    const type = (response.headers.get('content-type') ?? '').split(';')[0] ?? '';
    const isStream = type === 'text/event-stream';
    dispatch({ type: 'head', at: performance.now(), response, isStream });
    if (isStream) {
      await readStream(response, dispatch);
      dispatch({ type: 'ended', at: performance.now() });
    } else {
      dispatch({ type: 'body', body: await readBody(response, type), at: performance.now() });
    }
  } catch (error) {
    const at = performance.now();
    if (signal.aborted) {
      dispatch({ type: 'cancelled', at });
    } else {
      dispatch({ type: 'offline', at, reason: error instanceof OfflineError ? error : new OfflineError(String(error)) });
    }
  }
}

async function readStream(response: Response, dispatch: (action: RequestAction) => void): Promise<void> {
  for await (const event of readEvents(response)) {
    dispatch({ type: 'chunk', ...chunkOf(event.data) });
  }
}

/** What a chunk adds to the text: a JSON string or the one string in an object, else the data itself. */
export function chunkOf(data: string): { text: string; isJson: boolean } {
  let value: unknown;
  try {
    value = JSON.parse(data);
  } catch {
    return { text: data, isJson: false };
  }
  if (typeof value === 'string') {
    return { text: value, isJson: false };
  }
  const strings = typeof value === 'object' && value !== null ? Object.values(value).filter(member => typeof member === 'string') : [];
  return strings.length === 1 ? { text: strings[0] as string, isJson: false } : { text: data + '\n', isJson: true };
}

async function readBody(response: Response, type: string): Promise<Body> {
  if (/^(image|audio|video)\//.test(type)) {
    const blob = await response.blob();
    return { kind: 'media', url: URL.createObjectURL(blob), type, size: blob.size };
  }
  const text = await response.text();
  if (!text) {
    return { kind: 'none' };
  }
  if (type.endsWith('json')) {
    try {
      return { kind: 'json', value: JSON.parse(text) as unknown, text };
    } catch {
      return { kind: 'text', text };
    }
  }
  return { kind: 'text', text };
}
