// One realtime session from the playground: opened, messages out, messages in, closed; a reducer and the connection.
import { pack, unpack } from '../api/msgpack';
import type { Transport } from '../api/transport';
import type { Socket } from '../ui/form/endpoints';

/** A message as the list shows it. */
export interface Frame {
  number: number;
  way: 'out' | 'in' | 'said';
  /** ms since the session was asked for. */
  at: number;
  size: number;
  /** Decoded; bytes are a MediaBytes. */
  value: unknown;
  /** ms from the message that this one answers; null where answers have no one message. */
  after: number | null;
}

/** Bytes within a message, as something that a page can show. */
export interface MediaBytes {
  url: string;
  content_type: string;
  file_size: number;
}

export type SessionPhase = 'closed' | 'connecting' | 'open';

/** How a session stands. */
export interface SessionState {
  phase: SessionPhase;
  startedAt: number;
  openAfter: number | null;
  closedAfter: number | null;
  /** Newest last; the oldest fall out. */
  frames: Frame[];
  sent: number;
  received: number;
  /** Times of the messages that have no answer yet. */
  open: number[];
  /** Round trips in ms, newest last. */
  trips: number[];
  /** How it ended; null while it has not, and where the person ended it. */
  end: { code: number; reason: string } | null;
  /** What the other side complained of last. */
  problem: { error: string; reason: string } | null;
}

export type SessionAction =
  | { type: 'asked'; at: number }
  | { type: 'opened'; at: number }
  | { type: 'sent'; at: number; size: number; value: unknown }
  | { type: 'received'; at: number; size: number; value: unknown; isUnary: boolean }
  | { type: 'said'; at: number; size: number; value: unknown }
  | { type: 'closed'; at: number; code: number; reason: string; isMine: boolean };

export const KEPT_FRAMES = 200;

export const NO_SESSION: SessionState = {
  phase: 'closed',
  startedAt: 0,
  openAfter: null,
  closedAfter: null,
  frames: [],
  sent: 0,
  received: 0,
  open: [],
  trips: [],
  end: null,
  problem: null
};

/** Return the session after one action. */
export function reduceSession(state: SessionState, action: SessionAction): SessionState {
  const at = action.at - state.startedAt;
  switch (action.type) {
    case 'asked':
      return { ...NO_SESSION, phase: 'connecting', startedAt: action.at };
    case 'opened':
      return { ...state, phase: 'open', openAfter: at };
    case 'sent':
      return { ...withFrame(state, { way: 'out', at, size: action.size, value: action.value, after: null }), sent: state.sent + 1, open: [...state.open, at] };
    case 'received': {
      const [asked, ...open] = state.open;
      const after = action.isUnary && asked !== undefined ? at - asked : null;
      return {
        ...withFrame(state, { way: 'in', at, size: action.size, value: action.value, after }),
        received: state.received + 1,
        open: action.isUnary ? open : state.open,
        trips: after === null ? state.trips : [...state.trips.slice(1 - KEPT_FRAMES), after]
      };
    }
    case 'said':
      return { ...withFrame(state, { way: 'said', at, size: action.size, value: action.value, after: null }), problem: problemOf(action.value) ?? state.problem };
    case 'closed':
      return { ...state, phase: 'closed', closedAfter: at, end: action.isMine ? null : { code: action.code, reason: action.reason } };
  }
}

function withFrame(state: SessionState, frame: Omit<Frame, 'number'>): SessionState {
  const number = (state.frames.at(-1)?.number ?? 0) + 1;
  return { ...state, frames: [...state.frames.slice(1 - KEPT_FRAMES), { ...frame, number }] };
}

function problemOf(value: unknown): SessionState['problem'] {
  const said = value as { type?: unknown; error?: unknown; reason?: unknown } | null;
  return said?.type === 'x-fal-error' ? { error: String(said.error), reason: String(said.reason ?? '') } : null;
}

/** Return the middle of the last round trips. */
export function middle(trips: number[]): number | null {
  return trips.length ? ([...trips].sort((a, b) => a - b)[Math.floor(trips.length / 2)] ?? null) : null;
}

/** A session's connection. */
export interface Connection {
  send(value: unknown): void;
  close(): void;
}

/** Open a session and report what happens in it. */
export function connect(transport: Transport, path: string, kind: Socket, dispatch: (action: SessionAction) => void): Connection {
  const now = (): number => performance.now();
  dispatch({ type: 'asked', at: now() });
  const socket = transport.socket?.(path);
  if (!socket) {
    dispatch({ type: 'closed', at: now(), code: 0, reason: 'This page cannot open websockets.', isMine: false });
    return { send: () => undefined, close: () => undefined };
  }
  let isMine = false;
  const media = new Urls();
  socket.binaryType = 'arraybuffer';
  socket.onopen = () => dispatch({ type: 'opened', at: now() });
  socket.onmessage = (event: MessageEvent<string | ArrayBuffer>) => dispatch(read(event.data, kind, now(), media));
  socket.onclose = event => dispatch({ type: 'closed', at: now(), code: event.code, reason: event.reason, isMine });
  return {
    send: value => {
      const data = write(value, kind);
      socket.send(data);
      dispatch({ type: 'sent', at: now(), size: typeof data === 'string' ? data.length : data.byteLength, value });
    },
    close: () => {
      isMine = true;
      socket.close(1000);
    }
  };
}

function write(value: unknown, kind: Socket): string | Uint8Array<ArrayBuffer> {
  if (!kind.isRealtime) {
    return typeof value === 'string' ? value : JSON.stringify(value);
  }
  return kind.isJson ? new TextEncoder().encode(JSON.stringify(value)) : pack(value);
}

function read(data: string | ArrayBuffer, kind: Socket, at: number, media: Urls): SessionAction {
  if (typeof data === 'string') {
    const value = parsed(data);
    const type = (value as { type?: unknown } | null)?.type;
    const isControl = kind.isRealtime && (type === 'x-fal-error' || type === 'x-fal-message');
    return isControl ? { type: 'said', at, size: data.length, value } : { type: 'received', at, size: data.length, value, isUnary: kind.isUnary };
  }
  const bytes = new Uint8Array(data);
  return { type: 'received', at, size: bytes.length, value: withUrls(decode(bytes, kind), media), isUnary: kind.isUnary };
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}

function decode(bytes: Uint8Array, kind: Socket): unknown {
  if (!kind.isRealtime) {
    return bytes;
  }
  try {
    return kind.isJson ? (JSON.parse(new TextDecoder().decode(bytes)) as unknown) : unpack(bytes);
  } catch {
    // An App with an encoding of its own.
    return bytes;
  }
}

/** Addresses of bytes; only the newest are kept. */
class Urls {
  private readonly made: string[] = [];

  add(bytes: Uint8Array, type: string): MediaBytes {
    const url = URL.createObjectURL(new Blob([bytes as Uint8Array<ArrayBuffer>], { type }));
    this.made.push(url);
    if (this.made.length > KEPT_FRAMES) {
      URL.revokeObjectURL(this.made.shift() ?? '');
    }
    return { url, content_type: type, file_size: bytes.length };
  }
}

/** Return the value with bytes as addresses; fal's images name their type beside their `content`. */
function withUrls(value: unknown, media: Urls, type: string | null = null): unknown {
  if (value instanceof Uint8Array) {
    return media.add(value, type ?? typeOf(value));
  }
  if (Array.isArray(value)) {
    return value.map(item => withUrls(item, media));
  }
  if (typeof value !== 'object' || value === null) {
    return value;
  }
  const record = value as Record<string, unknown>;
  const said = typeof record['content_type'] === 'string' ? record['content_type'] : null;
  if (record['content'] instanceof Uint8Array) {
    const { content, ...rest } = record;
    return { ...rest, ...media.add(content as Uint8Array, said ?? typeOf(content as Uint8Array)) };
  }
  return Object.fromEntries(Object.entries(record).map(([name, member]) => [name, withUrls(member, media, said)]));
}

const SIGNATURES: [string, number[]][] = [
  ['image/png', [0x89, 0x50, 0x4e, 0x47]],
  ['image/jpeg', [0xff, 0xd8, 0xff]],
  ['image/gif', [0x47, 0x49, 0x46]],
  ['audio/ogg', [0x4f, 0x67, 0x67, 0x53]],
  ['audio/mpeg', [0x49, 0x44, 0x33]]
];

/** Name the kind of some bytes by how they begin. */
export function typeOf(bytes: Uint8Array): string {
  const found = SIGNATURES.find(([, start]) => start.every((byte, index) => bytes[index] === byte))?.[0];
  if (found) {
    return found;
  }
  const four = (start: number): string => String.fromCharCode(...bytes.subarray(start, start + 4));
  if (four(0) === 'RIFF') {
    return four(8) === 'WEBP' ? 'image/webp' : 'audio/wav';
  }
  return four(4) === 'ftyp' ? 'video/mp4' : 'application/octet-stream';
}
