// The card of a deployment: its reducer, its timeline, its words, and what an output may hold.
import assert from 'node:assert/strict';
import test from 'node:test';
import type { AppDetail, Deployment, Event } from '../src/api/wire.gen';
import { NO_APP, type AppView } from '../src/state/app';
import { NO_ROLLOUT, reduceRollout, type Course } from '../src/state/rollout';
import { rolloutFace } from '../src/ui/card/rolloutFace';
import { readPlan, readSaved } from '../src/ui/card/saved';
import { timelineOf } from '../src/ui/card/steps';
import { brief, callsText, tickText, uploadText } from '../src/ui/words';

const T0 = Date.parse('2026-01-02T03:04:05Z');
const at = (s: number): string => new Date(T0 + s * 1_000).toISOString();
const UPLOAD = { parts: 3, new_parts: 1, new_bytes: 11_200_000, duration_s: 0.7 };
const SENT = { upload: UPLOAD, isBefore: false };

function course(changes: Partial<Course> = {}): Course {
  return {
    deployment_id: 'd-0011223344',
    revision: 'new-rev-1',
    changed: true,
    state: 'verifying',
    kind: 'deploy',
    strategy: 'rolling',
    detach: false,
    phases: [
      { name: 'build', state: 'cached', began_at: at(0), duration_s: 0 },
      { name: 'start', state: 'done', began_at: at(0), duration_s: 0.5 },
      { name: 'setup', state: 'now', began_at: at(0.5), duration_s: null },
      { name: 'ready', state: 'next', began_at: null, duration_s: null }
    ],
    previous: 'old-rev-1',
    runner_id: null,
    calls: null,
    failed_calls: null,
    created_at: at(0),
    switched_at: null,
    ended_at: null,
    ...changes
  };
}

const DONE: Partial<Course> = {
  state: 'done',
  phases: [
    { name: 'build', state: 'cached', began_at: at(0), duration_s: 0 },
    { name: 'start', state: 'done', began_at: at(0), duration_s: 0.5 },
    { name: 'setup', state: 'done', began_at: at(0.5), duration_s: 3.6 },
    { name: 'ready', state: 'done', began_at: at(4.1), duration_s: 0.2 }
  ],
  switched_at: at(4.304),
  ended_at: at(6.2),
  calls: 140,
  failed_calls: 0
};

const LOST: Partial<Course> = {
  state: 'aborted',
  phases: course().phases.map(phase => (phase.name === 'setup' ? { ...phase, state: 'failed', duration_s: 0.8 } : phase)),
  ended_at: at(1.3)
};

function event(n: number, kind: string, data: Record<string, unknown>, when = at(n)): Event {
  return { n, kind, data: { deployment_id: 'd-0011223344', ...data }, at: when, subject: '', app: 'digits' };
}

function live(revision: string | null, changes: Partial<AppDetail> = {}): AppView {
  return { ...NO_APP, link: 'live', detail: { revision, state: 'serving', runners: [], ...changes } as unknown as AppDetail };
}

const saved = readSaved({ kind: 'deploy', instance: 'i', app: 'digits', title: 'digits', stage: 'sent', rollout: course(), upload: UPLOAD });

function face(changes: Partial<Course>, app: AppView = live('old-rev-1'), seconds = 4) {
  return rolloutFace(saved, { ...NO_ROLLOUT, course: course(changes) }, app, true, T0 + seconds * 1_000);
}

test('steps stand on one axis that begins with the upload', () => {
  const line = timelineOf(course(), SENT, T0 + 3_900);
  assert.deepEqual(
    line.steps.map(step => [step.name, step.state, step.note]),
    [
      ['Upload', 'done', '0.7 s'],
      ['Build', 'done', 'cached'],
      ['Start', 'done', '0.5 s'],
      ['Setup', 'now', '3.4 s'],
      ['Healthy', 'next', ''],
      ['Switch', 'next', ''],
      ['Drain old-rev-', 'next', '']
    ]
  );
  assert.deepEqual([line.span, line.tick], [8, 2]);
  assert.equal(line.steps[3]?.begin, 1.2);
  assert.deepEqual(
    line.answers.map(answer => [answer.revision, answer.begin, answer.end]),
    [['old-rev-1', 0, 4.6]]
  );
});

test('the new revision answers from the switch on', () => {
  const line = timelineOf(course(DONE), SENT, T0 + 99_000);
  assert.equal(line.total, 6.9);
  assert.deepEqual(line.steps.slice(-2).map(step => [step.name, step.note]), [['Switch', '4 ms'], ['Drain old-rev-', '1.9 s']]);
  assert.deepEqual(line.answers.map(answer => [answer.isNew, answer.end]), [[false, 5.004], [true, 8]]);
});

test('what was not reached says so, and nothing is drained that was not replaced', () => {
  const line = timelineOf(course(LOST), SENT, T0 + 99_000);
  assert.deepEqual(line.steps.slice(3).map(step => [step.name, step.state]), [['Setup', 'failed'], ['Healthy', 'missed'], ['Switch', 'missed']]);
  const first = timelineOf(course({ ...DONE, previous: null }), SENT, T0);
  assert.equal(first.steps.at(-1)?.name, 'Switch');
});

test('a detached and a recreated rollout have the steps that they have', () => {
  const recreated = timelineOf(course({ ...DONE, strategy: 'recreate', phases: course().phases.map(one => (one.name === 'build' ? one : { ...one, state: 'next', began_at: null })) }), SENT, T0);
  assert.deepEqual(recreated.steps.map(step => step.name), ['Upload', 'Build', 'Switch', 'Drain old-rev-']);
  const detached = timelineOf(course({ state: 'rolling_out', detach: true, switched_at: at(0.01) }), SENT, T0 + 2_000);
  assert.deepEqual(detached.steps.map(step => step.name), ['Upload', 'Build', 'Switch', 'Start', 'Setup', 'Healthy', 'Drain old-rev-']);
});

test('an upload that was with the plan has no bar of its own', () => {
  const line = timelineOf(course(), { upload: UPLOAD, isBefore: true }, T0 + 1_000);
  assert.deepEqual([line.steps[0]?.note, line.steps[0]?.begin, line.steps[1]?.begin], ['earlier', null, 0]);
});

test('events move a deployment; old ones and those of others do not', () => {
  let view = reduceRollout({ ...NO_ROLLOUT, course: course() }, { type: 'read', deployment: { ...course(), event: 5 } as Deployment });
  assert.equal(view.event, 5);
  view = reduceRollout(view, { type: 'event', event: event(6, 'deployment.state', { state: 'draining', switched_at: at(4) }), at: T0 + 6_500 });
  assert.deepEqual([view.course?.state, view.course?.switched_at, view.ahead], ['draining', at(4), 500]);
  const same = reduceRollout(view, { type: 'event', event: event(5, 'deployment.state', { state: 'aborted' }), at: T0 });
  assert.equal(same.course, view.course);
  const other = reduceRollout(view, { type: 'event', event: event(7, 'deployment.state', { deployment_id: 'd-9', state: 'aborted' }), at: T0 + 7_000 });
  assert.equal(other.course, view.course);
  assert.equal(reduceRollout(view, { type: 'read', deployment: { ...course(), event: 4 } as Deployment }), view);
  assert.equal(reduceRollout(view, { type: 'event', event: event(8, 'deployment.left', {}), at: T0 + 8_000 }).isLeft, true);
  const back = reduceRollout(view, { type: 'begin', course: course({ deployment_id: 'd-back000' }) });
  assert.equal(reduceRollout(back, { type: 'read', deployment: { ...course(), event: 99 } as Deployment }), back);
});

test('a rollout says what goes on, how long it took, and what became of the calls', () => {
  assert.deepEqual([face({}).title, face({}).word, face({}).meta], ['Deploying digits', 'Setting up', 'revision new-rev-, 4.7 s']);
  const done = face(DONE, live('new-rev-1'));
  assert.deepEqual([done.mode, done.word, done.meta], ['deployed', 'Deployed', 'revision new-rev- in 6.9 s, no failed request of 140']);
  assert.equal(face({ ...DONE, calls: null, failed_calls: null }, live('new-rev-1')).meta, 'revision new-rev- in 6.9 s');
  assert.equal(face({ ...DONE, kind: 'set_rev' }, live('new-rev-1')).word, 'Rolled back');
  assert.deepEqual([face(DONE, live('other-rev')).word, face(DONE, live('other-rev')).mode], ['Replaced', 'replaced']);
  assert.equal(face(DONE, { ...live(null), isGone: true }).word, 'Deleted');
});

test('what still works comes first after a failure', () => {
  const lost = face(LOST);
  assert.deepEqual([lost.word, lost.meta], ['Rollout aborted', 'setup of revision new-rev- failed after 0.8 s']);
  assert.deepEqual(lost.notice, { strong: 'Revision old-rev- keeps serving.', rest: 'Revision new-rev- is kept in the list, marked failed.' });
  assert.equal(face({ ...LOST, calls: 12, failed_calls: 1 }).notice?.rest.startsWith('1 of 12 requests failed.'), true);
  assert.equal(face({ ...LOST, previous: null }, { ...live(null), isGone: true }).notice?.strong, 'No revision is live.');
  assert.equal(face(LOST, live('third-rev')).notice?.strong, 'Revision old-rev- kept serving; revision third-re answers now.');
  assert.equal(face({ state: 'cancelled', ended_at: at(2) }).meta, 'revision new-rev- was stopped in setup after 1.5 s');
});

test('without a backend the card shows what its output keeps', () => {
  const view = rolloutFace(saved, NO_ROLLOUT, NO_APP, false, T0 + 99_000_000);
  assert.deepEqual([view.mode, view.timeline?.steps.length], ['saved', 7]);
});

test('a deployment from a file is bounded and never trusted', () => {
  const odd = (rollout: unknown): unknown => readSaved({ kind: 'deploy', rollout }).course;
  assert.equal(odd({ ...course(), deployment_id: '../x' }), null);
  assert.equal(odd({ ...course(), state: 'eaten' }), null);
  assert.equal(odd(7), null);
  assert.equal(readSaved({ kind: 'run', rollout: course() }).course, null);
  assert.deepEqual((odd({ ...course(), phases: [{ name: 'x' }, 3], calls: -1, kind: {} }) as Course).phases, []);
  assert.equal(readPlan({ kind: 'plan', plan: { plan_id: 'nothing' } }), null);
});

test('uploads, calls and ticks have their words', () => {
  assert.equal(uploadText(3, 1, 11_200_000), '1 of 3 parts is new, 11.2 MB');
  assert.equal(uploadText(3, 0, 0), 'nothing new, 3 parts there already');
  assert.deepEqual([callsText(null, null), callsText(0, 0), callsText(1, 1)], ['', 'no request meanwhile', '1 of 1 request failed']);
  assert.deepEqual([0.05, 0.6000000000000001, 8, 90, 120].map(tickText), ['0.05 s', '0.6 s', '8 s', '90 s', '2 min']);
  assert.deepEqual([0.0004, 0.004, 0.2].map(brief), ['at once', '4 ms', '0.2 s']);
});
