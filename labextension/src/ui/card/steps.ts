// The steps of a deployment on one time axis, and who answered when: pure, from what was measured.
import type { DeploymentPhase, Uploaded } from '../../api/wire.gen';
import { isBeforeSwitch, isOpen, isSuccess, type Course } from '../../state/rollout';
import { brief, seconds, shortId } from '../words';

export type StepState = 'done' | 'now' | 'next' | 'failed' | 'stopped' | 'missed';

/** One row: a bar from begin to end in seconds; none where nothing was measured. */
export interface Step {
  name: string;
  state: StepState;
  begin: number | null;
  end: number | null;
  note: string;
}

/** Who answers for a while. */
export interface Answer {
  revision: string;
  isNew: boolean;
  begin: number;
  end: number;
}

export interface Timeline {
  steps: Step[];
  answers: Answer[];
  /** Seconds from the left edge to the right. */
  span: number;
  /** Seconds between two labels of the axis. */
  tick: number;
  /** Seconds from the beginning to now, or to the end. */
  total: number;
}

/** What was sent for it; `isBefore`: with the plan, some time before it was confirmed. */
export interface Sent {
  upload: Uploaded | null;
  isBefore: boolean;
}

const TICKS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600];
const LABELS = 4;

/** Return the timeline at this moment of the backend's clock, in ms. */
export function timelineOf(course: Course, sent: Sent, now: number): Timeline {
  const lead = sent.upload && !sent.isBefore ? sent.upload.duration_s : 0;
  const origin = Date.parse(course.created_at) - lead * 1_000;
  const at = (iso: string | null): number | null => (iso === null ? null : Math.max(0, (Date.parse(iso) - origin) / 1_000));
  const isClosed = !isOpen(course);
  const last = at(course.ended_at) ?? Math.max(0, (now - origin) / 1_000);
  const phase = (name: DeploymentPhase['name'], title: string): Step[] => {
    const found = course.phases.find(one => one.name === name);
    return found ? phaseStep(found, title, at, last, course) : [];
  };
  const early = [...uploadStep(sent), ...phase('build', 'Build')];
  const runner = [...phase('start', 'Start'), ...phase('setup', 'Setup'), ...phase('ready', 'Healthy')];
  const switched = switchStep(course, [...early, ...(course.detach ? [] : runner)], at);
  const steps = course.detach ? [...early, switched, ...runner] : [...early, ...runner, switched];
  const total = last;
  const tick = TICKS.find(one => one * LABELS >= total) ?? Math.ceil(total / LABELS / 3_600) * 3_600;
  const span = tick * LABELS;
  return { steps: [...steps, ...drainStep(course, at, last)], answers: answersOf(course, at, isClosed ? span : last), span, tick, total };
}

type Place = (iso: string | null) => number | null;

function uploadStep({ upload, isBefore }: Sent): Step[] {
  if (!upload) {
    return [];
  }
  const note = isBefore ? 'earlier' : upload.new_parts ? seconds(upload.duration_s) : 'nothing new';
  return [{ name: 'Upload', state: 'done', begin: isBefore ? null : 0, end: isBefore ? null : upload.duration_s, note }];
}

function phaseStep(phase: DeploymentPhase, name: string, at: Place, last: number, course: Course): Step[] {
  const begin = at(phase.began_at);
  if (phase.state === 'next' || begin === null) {
    // A revision that takes over at once has no runner to wait for.
    const isNeeded = !isSuccess(course) && course.strategy !== 'recreate';
    return isNeeded ? [{ name, state: isOpen(course) ? 'next' : 'missed', begin: null, end: null, note: '' }] : [];
  }
  const end = phase.duration_s === null ? last : begin + phase.duration_s;
  const state = phase.state === 'now' ? (isOpen(course) ? 'now' : 'stopped') : phase.state === 'failed' ? 'failed' : 'done';
  const wasUp = phase.name === 'start' && phase.duration_s === 0;
  const note = phase.state === 'cached' ? 'cached' : wasUp ? 'was up' : brief(end - begin);
  return [{ name, state, begin, end, note }];
}

function switchStep(course: Course, before: Step[], at: Place): Step {
  const end = at(course.switched_at);
  if (end === null) {
    const state = course.state === 'switching' ? 'now' : isOpen(course) ? 'next' : 'missed';
    return { name: 'Switch', state, begin: null, end: null, note: '' };
  }
  const begin = Math.min(end, Math.max(0, ...before.map(step => step.end ?? 0)));
  return { name: 'Switch', state: 'done', begin, end, note: brief(end - begin) };
}

function drainStep(course: Course, at: Place, last: number): Step[] {
  const { previous } = course;
  const isLost = !isOpen(course) && !isSuccess(course);
  if (previous === null || previous === course.revision || isLost) {
    return [];
  }
  const name = `Drain ${shortId(previous)}`;
  const begin = at(course.switched_at);
  if (begin === null || course.state === 'rolling_out') {
    return [{ name, state: 'next', begin: null, end: null, note: '' }];
  }
  return [{ name, state: course.state === 'done' ? 'done' : 'now', begin, end: last, note: brief(last - begin) }];
}

function answersOf(course: Course, at: Place, until: number): Answer[] {
  const switched = at(course.switched_at);
  const { previous, revision } = course;
  const found: Answer[] = [];
  if (previous !== null) {
    found.push({ revision: previous, isNew: false, begin: 0, end: switched ?? until });
  }
  if (switched !== null && revision !== null) {
    found.push({ revision, isNew: true, begin: switched, end: Math.max(until, switched) });
  }
  return found;
}

/** The step that is worked on, or that ended it. */
export function tellingStep(course: Course): DeploymentPhase | null {
  return course.phases.find(one => one.state === 'failed') ?? course.phases.find(one => one.state === 'now') ?? null;
}

/** Who answers, in a sentence for those who do not see the bars. */
export function answersText(timeline: Timeline, course: Course): string {
  const [first, second] = timeline.answers;
  if (!first) {
    return isBeforeSwitch(course) ? 'no revision yet' : 'no revision';
  }
  const name = (answer: Answer): string => `revision ${shortId(answer.revision)}`;
  return second ? `${name(first)} until ${seconds(second.begin)}, then ${name(second)}` : name(first);
}
