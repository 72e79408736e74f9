// Reducers and plain helpers: the card's states, streams, snippets, tracebacks.
import assert from 'node:assert/strict';
import test from 'node:test';
import { Decoder } from '../src/api/sse';
import type { AppDetail, Deployment, Event } from '../src/api/wire.gen';
import { NO_APP, reduceApp } from '../src/state/app';
import { chunkOf, readTimings } from '../src/state/request';
import { faceOf } from '../src/ui/card/face';
import { readSaved } from '../src/ui/card/saved';
import { readTraceback } from '../src/ui/card/traceback';
import { mediaOf } from '../src/ui/playground/outputs';
import { curl, literal, python } from '../src/ui/playground/snippets';
import { bytes, duration, seconds } from '../src/ui/words';

const deployment = {
  deployment_id: 'd1',
  state: 'verifying',
  revision: null,
  image: { hash: '4f1c9a2e00', cached: true, size_bytes: 1 },
  phases: [
    { name: 'build', state: 'cached', duration_s: 0 },
    { name: 'start', state: 'done', duration_s: 0.4 },
    { name: 'setup', state: 'now', duration_s: null },
    { name: 'ready', state: 'next', duration_s: null }
  ],
  error: null
} as unknown as Deployment;

const detail = {
  alias: 'digits-dev-0a1b2c',
  event: 5,
  state: 'starting',
  revision: null,
  ephemeral: true,
  machine_types: ['S'],
  runners: [{ runner_id: 'r-41c8aa', node: 'local', ended_at: null }],
  deployment
} as unknown as AppDetail;

const saved = readSaved({ v: 1, kind: 'run', instance: 'i', app: 'digits-dev-0a1b2c', title: 'digits', stage: 'sent' });

function event(n: number, kind: string, data: Record<string, unknown>): Event {
  return { n, kind, data, at: '', subject: '', app: detail.alias };
}

test('a card goes through setup to ready, and to stopped', () => {
  let view = reduceApp(NO_APP, { type: 'read', detail, at: 0 });
  let face = faceOf(saved, view, true, 2_100);
  assert.equal(face.word, 'Setup');
  assert.equal(face.meta, 'runner r-41c8 on this machine');
  assert.deepEqual(
    face.phases?.map(phase => [phase.name, phase.state, phase.time]),
    [
      ['Check', 'done', null],
      ['Build', 'cached', 'cached'],
      ['Start', 'done', '0.4 s'],
      ['Setup', 'now', '2.1 s']
    ]
  );
  view = reduceApp(view, { type: 'event', event: event(6, 'deployment.state', { deployment_id: 'd1', state: 'done', revision: 'v1' }), at: 1 });
  assert.equal(view.detail?.deployment?.state, 'done');
  view = reduceApp(view, { type: 'read', detail: { ...detail, state: 'serving', revision: 'v1', deployment: { ...deployment, state: 'done' } }, at: 2 });
  face = faceOf(saved, view, true, 3);
  assert.deepEqual([face.mode, face.kind, face.word], ['ready', 'ok', 'Ready']);
  view = reduceApp(view, { type: 'event', event: event(9, 'app.deleted', { reason: 'session_ended' }), at: 4 });
  face = faceOf(saved, reduceApp(view, { type: 'gone' }), true, 5);
  assert.deepEqual([face.mode, face.word, face.meta], ['ended', 'Stopped', 'its kernel ended']);
});

test('an old event changes nothing', () => {
  const view = reduceApp(NO_APP, { type: 'read', detail, at: 0 });
  assert.equal(reduceApp(view, { type: 'event', event: event(5, 'deployment.state', { deployment_id: 'd1', state: 'done' }), at: 1 }), view);
});

test('a failed setup says where, and what keeps serving', () => {
  const error = { code: 'runner.setup_failed', message: 'x', fix: null, where: null, traceback: null, details: {} };
  const phases = deployment.phases.map(phase => (phase.name === 'setup' ? { ...phase, state: 'failed' as const, duration_s: 0.8 } : phase));
  const failed = { ...detail, revision: 'old', deployment: { ...deployment, state: 'aborted' as const, revision: 'new', phases, error } };
  const face = faceOf(saved, reduceApp(NO_APP, { type: 'read', detail: failed, at: 0 }), true, 0);
  assert.deepEqual([face.word, face.meta, face.remark], ['Setup failed', 'after 0.8 s on runner r-41c8', 'Revision old keeps serving.']);
});

test('a lost backend keeps the last state and says since when', () => {
  let view = reduceApp(NO_APP, { type: 'read', detail, at: 0 });
  view = reduceApp(view, { type: 'offline', at: 1_000, reason: null });
  view = reduceApp(view, { type: 'offline', at: 60_000, reason: null });
  assert.equal(view.offlineSince, 1_000);
  assert.equal(view.detail, detail);
  assert.equal(faceOf(saved, view, true, 121_000).word, 'Not connected');
  assert.equal(faceOf(saved, view, false, 121_000).word, 'Saved view');
});

test('an output from a file is bounded and never trusted', () => {
  const odd = readSaved({ kind: 7, app: { x: 1 }, title: 'x'.repeat(9_999), stage: '<b>', facts: 3, problem: [] });
  assert.deepEqual([odd.kind, odd.alias, odd.title.length, odd.stage, odd.problem], ['run', '', 500, 'sent', null]);
  assert.deepEqual(odd.facts.endpoints, []);
});

test('events are decoded wherever the chunks are cut', () => {
  const text = ': ping\n\nid: 4\ndata: {"a":1}\n\ndata: x\ndata: y\r\n\r\nevent: end\ndata: {}\n\n';
  const decoder = new Decoder();
  const found = [...text].flatMap(letter => decoder.feed(letter));
  assert.deepEqual(found, [
    { data: '{"a":1}', id: '4', event: null },
    { data: 'x\ny', id: null, event: null },
    { data: '{}', id: null, event: 'end' }
  ]);
});

test('chunks of text, strings and single-string objects are joined as text', () => {
  assert.equal(chunkOf('plain').text, 'plain');
  assert.equal(chunkOf('"a b"').text, 'a b');
  assert.equal(chunkOf('{"delta": "x", "n": 1}').text, 'x');
  assert.deepEqual(chunkOf('{"n": 1}'), { text: '{"n": 1}\n', isJson: true });
});

test('snippets hold the call and no key', () => {
  const call = { url: 'http://h/run/a/b', method: 'POST', body: { text: "it's", ok: true, none: null }, needsKey: true };
  assert.match(curl(call), /\$FAL_KEY/);
  assert.match(curl(call), /'\\''/);
  assert.match(python(call), /"ok": True, "none": None/);
  assert.match(python(call), /os\.environ\['FAL_KEY'\]/);
  assert.doesNotMatch(curl({ ...call, needsKey: false }), /KEY/);
  assert.match(python({ ...call, isStream: true }), /with httpx\.stream\(\n {4}"POST",\n/);
  assert.match(curl({ ...call, isStream: true }), /^curl -N -X POST/);
  assert.equal(literal([1, 2.5, 'x']), '[1, 2.5, "x"]');
});

test('files in an answer are recognised', () => {
  assert.equal(mediaOf('x', 'data:image/png;base64,AAAA')?.type, 'image');
  assert.equal(mediaOf('x', 'https://h/a.wav')?.type, 'audio');
  assert.equal(mediaOf('image', { url: 'https://h/a', content_type: 'image/png', width: 2, height: 3 })?.note, '2 × 3 PNG');
  assert.equal(mediaOf('x', { url: 'javascript:alert(1)', content_type: 'image/png' }), null);
  assert.equal(mediaOf('x', 'plain'), null);
});

test('own frames are told from library frames', () => {
  const text = [
    'Traceback (most recent call last):',
    '  File "/x/lib/python3.11/site-packages/y.py", line 3, in f',
    '    g()',
    '  File "In [7]", line 10, in setup',
    '    self.names = open("x")',
    'FileNotFoundError: x'
  ].join('\n');
  const frames = readTraceback(text);
  assert.deepEqual(
    frames.map(frame => [frame.place, frame.line, frame.isOwn]),
    [
      ['/x/lib/python3.11/site-packages/y.py', 3, false],
      ['In [7]', 10, true]
    ]
  );
});

test('numbers have units and only the digits that can be trusted', () => {
  assert.deepEqual([6.4, 76, 4_020, 63_000].map(duration), ['6.4 ms', '76 ms', '4.02 s', '1 min 3 s']);
  assert.deepEqual([0.012, 0.4, 12.34].map(seconds), ['12 ms', '0.4 s', '12.3 s']);
  assert.deepEqual([900, 9_500_000].map(bytes), ['900 B', '9.5 MB']);
  assert.deepEqual(readTimings('queue;dur=0.2, run;desc="x";dur=5.3'), [
    { name: 'queue', ms: 0.2 },
    { name: 'run', ms: 5.3 }
  ]);
});
