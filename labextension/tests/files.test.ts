// Files and sessions: which fields are pickers, how an upload is sent, MessagePack, the reducer of a session.
import assert from 'node:assert/strict';
import test from 'node:test';
import { HttpTransport } from '../src/api/http';
import { pack, unpack } from '../src/api/msgpack';
import { PART_BYTES, upload, wayOf } from '../src/api/upload';
import { connect, middle, NO_SESSION, reduceSession, typeOf, type SessionAction, type SessionState } from '../src/state/session';
import { doorOf, INLINE_BYTES, knownOf } from '../src/ui/files';
import { readEndpoints, type Socket } from '../src/ui/form/endpoints';
import { normalise, typeText, type ListNode, type Node, type ObjectNode, type StringNode } from '../src/ui/form/normalise';
import { mediaOf } from '../src/ui/playground/outputs';
import { javascriptSession, pythonSession } from '../src/ui/playground/snippets';
import type { AppDetail } from '../src/api/wire.gen';
import { factsOf } from '../src/ui/card/Facts';
import { imagesIn } from '../src/ui/form/values';
import { digits, left } from '../src/ui/words';

const ID = '0123456789abcdef0123456789abcdef';

function mediaOfField(name: string, schema: object): string | null {
  const node = normalise({ type: 'object', properties: { [name]: schema } }, {}) as ObjectNode;
  return (node.fields[0]?.node as StringNode).media ?? null;
}

test('a field is a picker where its hint, its name or its model says so', () => {
  const text = { type: 'string' };
  assert.equal(mediaOfField('portrait', { ...text, ui: { field: 'image' } }), 'image');
  assert.equal(mediaOfField('image_url', text), 'image');
  assert.equal(mediaOfField('mask_url', text), 'image');
  assert.equal(mediaOfField('reference_audio_url', text), 'audio');
  assert.equal(mediaOfField('video_url', { anyOf: [text, { type: 'null' }] }), 'video');
  assert.equal(mediaOfField('pdf_url', text), 'file');
  assert.equal(mediaOfField('file_url', { ...text, ui: { field: 'textarea' } }), null, "the author's own hint wins");
  for (const name of ['webhook_url', 'callback_url', 'base_url', 'url', 'curl', 'prompt']) {
    assert.equal(mediaOfField(name, text), null, name);
  }
  const list = normalise({ type: 'object', properties: { image_urls: { type: 'array', items: text } } }, {}) as ObjectNode;
  assert.equal(((list.fields[0]?.node as ListNode).item as StringNode).media, 'image');
  const file = normalise({ type: 'object', properties: { url: text, content_type: text } }, {}) as ObjectNode;
  assert.equal((file.fields[0]?.node as StringNode).media, 'file');
  assert.equal(typeText(normalise({ ...text, ui: { field: 'audio' } }, {}) as Node), 'audio');
});

interface Sent {
  url: string;
  method: string;
  size: number;
  type: string | null;
}

function storage(sent: Sent[], refuse: (url: string) => boolean = () => false): HttpTransport {
  const fetcher = async (url: string, init: RequestInit): Promise<Response> => {
    const body = init.body instanceof Blob ? await init.body.arrayBuffer() : null;
    sent.push({ url, method: init.method ?? 'GET', size: body?.byteLength ?? 0, type: new Headers(init.headers).get('content-type') });
    if (refuse(url)) {
      return Response.json({ detail: 'The files may hold 5 MB together.' }, { status: 413 });
    }
    const path = `http://127.0.0.1:8780/files/${ID}/big.npy`;
    if (url.includes('/initiate')) {
      return Response.json({ upload_url: `${path}${url.includes('multipart') ? '/multipart/aa' : ''}?sig=s&x=1`, file_url: path });
    }
    const number = /multipart\/aa\/(\d+)/.exec(url)?.[1];
    return Response.json(number ? { partNumber: Number(number), etag: `"${number}"` } : {});
  };
  return new HttpTransport('/fal/i/x/', fetcher, { keepsFiles: true });
}

test('a small file goes in one, to the path of its signed address by the way of this page', async () => {
  const sent: Sent[] = [];
  const file = new File([new Uint8Array(10)], '../odd..name.png', { type: 'image/png' });
  const url = await upload(storage(sent), file, () => undefined, new AbortController().signal);
  assert.equal(url, `http://127.0.0.1:8780/files/${ID}/big.npy`);
  assert.deepEqual(
    sent.map(one => [one.method, one.url, one.size]),
    [
      ['POST', '/fal/i/x/rest/storage/upload/initiate?storage_type=fal-cdn-v3', 0],
      ['PUT', `/fal/i/x/files/${ID}/big.npy?sig=s&x=1`, 10]
    ]
  );
  assert.equal(sent[1]?.type, 'image/png', 'the address was signed for that type');
});

test('a large file goes in parts that say how far it is, and is completed in their order', async () => {
  const sent: Sent[] = [];
  const steps: number[] = [];
  const file = new File([new Uint8Array(2 * PART_BYTES + 5)], 'big.npy');
  await upload(storage(sent), file, progress => steps.push(progress.sent), new AbortController().signal);
  const puts = sent.filter(one => one.method === 'PUT');
  assert.deepEqual(puts.map(one => one.size).sort((a, b) => a - b), [5, PART_BYTES, PART_BYTES]);
  assert.ok(sent.at(-1)?.url.endsWith('/multipart/aa/complete?sig=s&x=1'));
  assert.equal(steps[0], 0);
  assert.equal(steps.at(-1), file.size);
  assert.deepEqual([...steps].sort((a, b) => a - b), steps);
});

test('a refused upload says why', async () => {
  const door = doorOf(storage([], url => url.includes('/files/')));
  const file = new File(['x'], 'x.txt');
  await assert.rejects(door.take(file, () => undefined, new AbortController().signal), /may hold 5 MB together/);
});

test('a page without a key puts small files into the request, and says where that ends', async () => {
  const door = doorOf(new HttpTransport('/', () => Promise.reject(new Error('no request is sent'))));
  const signal = new AbortController().signal;
  const url = await door.take(new File(['abc'], 'x.txt', { type: 'text/plain' }), () => undefined, signal);
  assert.equal(url, 'data:text/plain;base64,YWJj');
  const large = new File([new Uint8Array(INLINE_BYTES + 1)], 'x.bin');
  await assert.rejects(door.take(large, () => undefined, signal), /enter a URL/);
  assert.equal(knownOf(url).size, 3);
});

test("files of a backend on the server's machine are read through the server, others as they are", () => {
  const lab = storage([]);
  assert.equal(lab.show(`http://127.0.0.1:8780/files/${ID}/a%20b.png`), `/fal/i/x/files/${ID}/a%20b.png`);
  assert.equal(lab.show(`https://127.0.0.1:8780/files/${ID}/a.png?x`), `https://127.0.0.1:8780/files/${ID}/a.png?x`);
  assert.equal(lab.show('https://example.org/a.png'), 'https://example.org/a.png');
  const own = new HttpTransport('/', fetch);
  assert.equal(own.show(`http://127.0.0.1:8780/files/${ID}/a.png`), `http://127.0.0.1:8780/files/${ID}/a.png`);
  assert.deepEqual(wayOf(`https://h/prefix/files/${ID}/a?b=c`), { path: `files/${ID}/a`, query: '?b=c' });
});

test('how far an upload is, in words', () => {
  assert.equal(left(0, 320_000_000, 0), '0 B of 320 MB');
  assert.equal(left(198_000_000, 320_000_000, 6_500), '198 of 320 MB, 4 s left');
  assert.equal(left(500_000, 2_000_000, 100), '500 kB of 2.0 MB');
});

test('MessagePack keeps every kind of value', () => {
  const numbers = [0, 1, 127, 128, 255, 256, 65_535, 65_536, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1, -1, -32, -33, -128, -129, -32_769, -(2 ** 31) - 1, 0.5, -1.25e300];
  const texts = ['', 'é', 'x'.repeat(31), 'x'.repeat(32), 'x'.repeat(300), 'x'.repeat(70_000)];
  const lists = [[], Array(15).fill(1), Array(16).fill(null), Array(70_000).fill(false)];
  const many = Object.fromEntries(Array.from({ length: 20 }, (_, index) => [`k${index}`, index]));
  for (const value of [...numbers, ...texts, ...lists, null, true, { a: { b: [1, 'x', null] } }, many]) {
    assert.deepEqual(unpack(pack(value)), value);
  }
  assert.deepEqual(unpack(pack({ a: new Uint8Array([1, 2]) })), { a: new Uint8Array([1, 2]) });
  assert.deepEqual(unpack(pack({ a: undefined, b: 1 })), { b: 1 });
  // Written by Python's msgpack: a 32-bit float, an extension, bytes.
  assert.deepEqual(unpack(Uint8Array.from([0x93, 0xca, 0x3f, 0, 0, 0, 0xd4, 1, 9, 0xc4, 1, 7])), [0.5, new Uint8Array([9]), new Uint8Array([7])]);
  assert.throws(() => unpack(Uint8Array.from([0xa5, 0x61])), RangeError);
  assert.equal(({} as Record<string, unknown>)['polluted'], undefined);
  unpack(pack(JSON.parse('{"__proto__": {"polluted": 1}}')));
  assert.equal(({} as Record<string, unknown>)['polluted'], undefined);
});

const DOCUMENT = JSON.stringify({
  'x-fal-order-paths': ['/'],
  paths: {
    '/': { post: { operationId: 'run' } },
    '/live': {
      'x-fal-protocol': { type: 'realtime', operationId: 'live', contentType: 'application/msgpack', realtimeMode: 'unary', config: { buffering: null, maxBatchSize: 1 } },
      post: { requestBody: { content: { 'application/json': { schema: { type: 'object', properties: { x: { type: 'integer' } } } } } } }
    },
    '/free': { 'x-fal-protocol': { type: 'realtime', realtimeMode: 'unary', config: { buffering: 2 } } },
    '/raw': { 'x-fal-protocol': { type: 'websocket' } }
  }
});

test('websocket endpoints are told apart from calls', () => {
  const found = readEndpoints(DOCUMENT);
  assert.deepEqual(
    found.map(one => [one.path, one.method, one.socket && [one.socket.isRealtime, one.socket.isUnary]]),
    [
      ['/', 'POST', null],
      ['/live', 'WS', [true, true]],
      ['/free', 'WS', [true, false]],
      ['/raw', 'WS', [false, false]]
    ]
  );
  assert.equal(found[1]?.parts['body']?.kind, 'object');
  assert.equal(found[2]?.parts['body']?.kind, 'json', 'an endpoint without a model takes any JSON');
  assert.deepEqual(found[3]?.parts, {});
});

const UNARY: Socket = { isRealtime: true, isUnary: true, isJson: false };

class Wire {
  binaryType = '';
  sent: unknown[] = [];
  onopen = (): void => undefined;
  onmessage = (_: { data: unknown }): void => undefined;
  onclose = (_: { code: number; reason: string }): void => undefined;
  send(data: unknown): void {
    this.sent.push(data);
  }
  close(code: number): void {
    this.onclose({ code, reason: '' });
  }
}

function opened(kind: Socket): { wire: Wire; state: () => SessionState; send: (value: unknown) => void; close: () => void } {
  const wire = new Wire();
  let state = NO_SESSION;
  const transport = new HttpTransport('/', fetch, { socket: () => wire as unknown as WebSocket });
  const connection = connect(transport, 'run/a/b/live', kind, (action: SessionAction) => {
    state = reduceSession(state, action);
  });
  wire.onopen();
  return { wire, state: () => state, send: connection.send, close: connection.close };
}

function packed(value: unknown): ArrayBuffer {
  return pack(value).buffer;
}

test('a session sends messages and gives each answer the time that it took', () => {
  const { wire, state, send, close } = opened(UNARY);
  send({ x: 1 });
  send({ x: 2 });
  wire.onmessage({ data: packed({ y: 2 }) });
  wire.onmessage({ data: '{"type":"x-fal-message","action":"timings","timing":0.1}' });
  wire.onmessage({ data: packed({ y: 4 }) });
  assert.deepEqual(unpack(wire.sent[1] as Uint8Array), { x: 2 });
  assert.deepEqual(
    state().frames.map(frame => [frame.way, frame.value]),
    [
      ['out', { x: 1 }],
      ['out', { x: 2 }],
      ['in', { y: 2 }],
      ['said', { type: 'x-fal-message', action: 'timings', timing: 0.1 }],
      ['in', { y: 4 }]
    ]
  );
  assert.equal(state().trips.length, 2);
  assert.deepEqual([state().sent, state().received, state().open.length], [2, 2, 0]);
  close();
  assert.deepEqual([state().phase, state().end], ['closed', null]);
});

test('what ended a session is kept', () => {
  const { wire, state } = opened(UNARY);
  wire.onmessage({ data: '{"type":"x-fal-error","error":"INTERNAL_ERROR","reason":"x is wrong"}' });
  wire.onclose({ code: 1000, reason: '' });
  assert.deepEqual(state().problem, { error: 'INTERNAL_ERROR', reason: 'x is wrong' });
  assert.deepEqual(state().end, { code: 1000, reason: '' });
});

test('media in a message become addresses with their type', () => {
  const { wire, state } = opened(UNARY);
  const png = new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0]);
  wire.onmessage({ data: packed({ image: { content: png, content_type: 'image/png', width: 1 }, raw: png }) });
  const value = state().frames[0]?.value as { image: { url: string; content_type: string; width: number }; raw: { content_type: string } };
  assert.equal(value.image.width, 1);
  assert.equal(value.raw.content_type, 'image/png');
  assert.equal(mediaOf('image', value.image)?.type, 'image');
  assert.equal(typeOf(new Uint8Array([1, 2, 3])), 'application/octet-stream');
});

test('a raw websocket carries text as it is typed', () => {
  const { wire, state, send } = opened({ isRealtime: false, isUnary: false, isJson: false });
  send('hello');
  wire.onmessage({ data: 'HELLO' });
  assert.equal(wire.sent[0], 'hello');
  assert.equal(state().frames[1]?.value, 'HELLO');
});

test('only the newest messages are kept, all are counted', () => {
  let state = reduceSession(NO_SESSION, { type: 'asked', at: 0 });
  for (let number = 0; number < 500; number++) {
    state = reduceSession(state, { type: 'received', at: number, size: 1, value: number, isUnary: false });
  }
  assert.equal(state.received, 500);
  assert.equal(state.frames.length, 200);
  assert.equal(state.frames.at(-1)?.number, 500);
  assert.equal(middle([3, 1, 2]), 2);
  assert.equal(middle([]), null);
});

test('a session in the words of other programs', () => {
  const call = { app: 'ada/live', path: '/realtime', url: 'ws://h/run/ada/live/realtime', body: { x: 1 }, needsKey: true, isRealtime: true };
  assert.match(pythonSession(call), /fal_client\.realtime\("ada\/live", use_jwt=False\) as session/);
  assert.match(pythonSession({ ...call, path: '/live' }), /path="\/live"/);
  assert.match(pythonSession({ ...call, isRealtime: false }), /connect\("ws:\/\/h\/run\/ada\/live\/realtime", additional_headers/);
  assert.match(javascriptSession(call), /live\.send\(\{"x":1\}\)/);
});

test('a file that is no picture is still a file with its name', () => {
  const media = mediaOf('report', { url: `http://h/files/${ID}/a.pdf`, content_type: 'application/pdf', file_name: 'Report.pdf', file_size: 12_000 });
  assert.deepEqual(media, { url: `http://h/files/${ID}/a.pdf`, type: 'file', note: 'application/pdf, 12.0 kB', file: 'Report.pdf' });
  assert.equal(mediaOf('where', `http://127.0.0.1:1/files/${ID}/x.npy`)?.type, 'file');
  assert.equal(mediaOf('where', 'https://example.org/x.npy'), null);
  assert.equal(mediaOf('image', { url: 'https://h/x', content_type: 'image/png', width: 4, height: 3, file_size: 241_000 })?.note, '4 × 3 PNG, 241 kB');
});

test('the one image that goes in is found wherever it lies', () => {
  const text = { type: 'string' };
  const node = normalise({ type: 'object', properties: { image_urls: { type: 'array', items: text }, prompt: text, inner: { type: 'object', properties: { mask_url: text } } } }, {}) as ObjectNode;
  assert.deepEqual(imagesIn(node, { image_urls: ['a', ''], prompt: 'x', inner: { mask_url: 'm' } }), ['a', 'm']);
  assert.deepEqual(imagesIn(node, { prompt: 'x' }), []);
});

test('numbers that were worked out have six digits', () => {
  assert.deepEqual([64.90279513888889, 0.5447, 3, 1e21, 123456789].map(digits), ['64.9028', '0.5447', '3', '1e+21', '123456789']);
});

test('the facts of a card tell websockets from calls', () => {
  const detail = { endpoints: [{ path: '/', method: 'run' }, { path: '/live', method: 'live' }], openapi: DOCUMENT, machine_types: [], requirements: [], captures: [] } as unknown as AppDetail;
  assert.deepEqual(factsOf(detail).endpoints.map(one => one.method), ['POST', 'WS']);
});
