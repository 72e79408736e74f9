// What the card of a deployment says in its head and its notice: a pure function of what is known now.
import type { AppView } from '../../state/app';
import type { ErrorBody } from '../../api/wire.gen';
import { isBeforeSwitch, isOpen, isSuccess, type Course, type RolloutView } from '../../state/rollout';
import type { StatusKind } from '../base/parts';
import { ago, callsText, clock, seconds, shortId } from '../words';
import type { Saved } from './saved';
import { tellingStep, timelineOf, type Timeline } from './steps';

export type RolloutMode = 'rolling' | 'deployed' | 'replaced' | 'aborted' | 'ended' | 'offline' | 'saved' | 'connecting';

export interface RolloutFace {
  mode: RolloutMode;
  title: string;
  kind: StatusKind;
  word: string;
  meta: string;
  /** What still works, first and strong, and what else is to be known. */
  notice: { strong: string; rest: string } | null;
  problem: ErrorBody | null;
  timeline: Timeline | null;
}

type Head = Pick<RolloutFace, 'mode' | 'kind' | 'word' | 'meta'>;

/** Return the face; `known` is false where no backend of that id can be reached from here. */
export function rolloutFace(saved: Saved, rollout: RolloutView, app: AppView, known: boolean | null, now: number): RolloutFace {
  const course = rollout.course ?? saved.course;
  const isStale = known === false || app.link === 'offline';
  const moment = known === false ? (saved.savedAt ?? now) : app.link === 'offline' ? (app.offlineSince ?? now) : now - (rollout.ahead ?? 0);
  const timeline = course && course.changed ? timelineOf(course, { upload: course.kind === 'deploy' ? saved.upload : null, isBefore: saved.isPlanned }, moment) : null;
  // What was not wanted any more has no error; the cell that waited for it has one.
  const isWanted = course?.state !== 'cancelled' && course?.state !== 'superseded';
  const problem = course?.error ?? (isWanted && course?.deployment_id === saved.course?.deployment_id ? saved.problem : null);
  const head = isStale ? awayHead(saved, app, known, now) : course && timeline ? headOf(course, timeline, app) : quietHead(course, app, now);
  return {
    ...head,
    title: titleOf(saved, course, head.mode),
    notice: course && head.mode === 'aborted' ? noticeOf(course, app) : null,
    problem: head.mode === 'aborted' || isStale ? problem : app.refusal,
    timeline
  };
}

function titleOf(saved: Saved, course: Course | null, mode: RolloutMode): string {
  if (mode !== 'rolling') {
    return saved.title;
  }
  return course?.kind === 'set_rev' ? `Rolling back ${saved.title}` : `Deploying ${saved.title}`;
}

function awayHead(saved: Saved, app: AppView, known: boolean | null, now: number): Head {
  if (known === false) {
    const date = saved.savedAt ? new Date(saved.savedAt) : null;
    const when = date ? ` on ${date.toLocaleDateString(undefined, { day: 'numeric', month: 'short' })}, ${clock(date.getTime())}` : '';
    return { mode: 'saved', kind: 'idle', word: 'Saved view', meta: `what this cell showed${when}` };
  }
  const since = app.offlineSince ?? now;
  return { mode: 'offline', kind: 'offline', word: 'Not connected', meta: `state from ${clock(since)}, ${ago(since, now)}` };
}

/** Of a cell that found nothing to deploy, and before anything is known. */
function quietHead(course: Course | null, app: AppView, now: number): Head {
  if (!course) {
    return { mode: 'connecting', kind: 'busy', word: 'Connecting', meta: '' };
  }
  const meta = [revisionOf(course.revision), ago(Date.parse(app.detail?.deployed_at ?? course.created_at), now)].join(', ');
  return goneHead(course, app) ?? { mode: 'deployed', kind: 'ok', word: 'Already deployed', meta };
}

function headOf(course: Course, timeline: Timeline, app: AppView): Head {
  if (isBeforeSwitch(course) || course.state === 'rolling_out') {
    return { mode: 'rolling', kind: 'busy', word: doing(course), meta: `${revisionOf(course.revision)}, ${seconds(timeline.total)}` };
  }
  if (isSuccess(course)) {
    return goneHead(course, app) ?? successHead(course, timeline, app);
  }
  const isWanted = course.state === 'cancelled' || course.state === 'superseded';
  const word = course.state === 'superseded' ? 'Overtaken' : course.state === 'failed' ? 'Rollout failed' : 'Rollout aborted';
  return { mode: 'aborted', kind: isWanted ? 'off' : 'err', word, meta: lostMeta(course, timeline) };
}

const DOING: Record<string, string> = { build: 'Building', start: 'Starting', setup: 'Setting up', ready: 'Checking' };

function doing(course: Course): string {
  const step = tellingStep(course);
  if (step?.state === 'now') {
    return DOING[step.name] ?? 'Starting';
  }
  return course.state === 'switching' ? 'Switching' : course.state === 'building' ? 'Building' : 'Starting';
}

/** What has become of the revision since: it was replaced, or its app deleted. */
function goneHead(course: Course, app: AppView): Head | null {
  if (app.isGone) {
    return { mode: 'ended', kind: 'off', word: 'Deleted', meta: 'callers get 404' };
  }
  const current = app.detail?.revision ?? null;
  const hasShare = app.detail?.split_revision === course.revision;
  if (current !== null && current !== course.revision && !hasShare) {
    return { mode: 'replaced', kind: 'idle', word: 'Replaced', meta: `${revisionOf(course.revision)}; ${revisionOf(current)} answers now` };
  }
  return null;
}

function successHead(course: Course, timeline: Timeline, app: AppView): Head {
  const revision = revisionOf(course.revision);
  if (app.detail?.state === 'failing') {
    return { mode: 'deployed', kind: 'err', word: 'Failing', meta: [revision, app.detail.state_reason].filter(Boolean).join(', ') };
  }
  const word = course.kind === 'set_rev' ? 'Rolled back' : 'Deployed';
  if (course.state === 'draining') {
    return { mode: 'deployed', kind: 'ok', word, meta: `${revision} answers; ${shortId(course.previous ?? '')} finishes its requests` };
  }
  // Nobody could call what was not there before.
  const calls = course.previous === null && !course.calls ? '' : callsText(course.calls, course.failed_calls);
  const meta = [`${revision} in ${seconds(timeline.total)}`, calls].filter(Boolean).join(', ');
  return { mode: 'deployed', kind: 'ok', word, meta };
}

const STEPS: Record<string, string> = { build: 'build', start: 'start of a runner', setup: 'setup', ready: 'check' };

function lostMeta(course: Course, timeline: Timeline): string {
  const revision = revisionOf(course.revision);
  if (course.state === 'superseded') {
    return `${revision}: a newer deployment took its place`;
  }
  const step = tellingStep(course);
  const bar = timeline.steps.find(one => one.state === 'failed' || one.state === 'stopped');
  const after = bar?.begin != null && bar.end != null ? ` after ${seconds(bar.end - bar.begin)}` : '';
  if (course.state === 'cancelled') {
    return step ? `${revision} was stopped in ${STEPS[step.name]}${after}` : `${revision} was stopped`;
  }
  return step ? `${STEPS[step.name]} of ${revision} failed${after}` : `${revision} failed`;
}

function noticeOf(course: Course, app: AppView): RolloutFace['notice'] {
  const kept = course.state === 'aborted' || course.state === 'failed' ? ', marked failed' : '';
  const fate = course.revision && course.kind === 'deploy' ? `Revision ${shortId(course.revision)} is kept in the list${kept}.` : '';
  return { strong: servesText(course, app), rest: [sentence(callsText(course.calls, course.failed_calls)), fate].filter(Boolean).join(' ') };
}

/** Who answers after a deployment that came to nothing. */
function servesText(course: Course, app: AppView): string {
  const current = app.detail?.revision ?? null;
  if (app.isGone || (app.detail && current === null)) {
    return 'No revision is live.';
  }
  if (current === null) {
    // Not asked yet: the deployment itself knows who answered when it ended.
    return course.previous ? `Revision ${shortId(course.previous)} kept serving.` : 'No revision is live.';
  }
  if (current === course.previous) {
    return `Revision ${shortId(current)} keeps serving.`;
  }
  if (current === course.revision) {
    return `Revision ${shortId(current)} has the callers, without a runner.`;
  }
  const before = course.previous ? `Revision ${shortId(course.previous)} kept serving; ` : '';
  const now = `${before ? 'revision' : 'Revision'} ${shortId(current)} answers now.`;
  return before + now;
}

function sentence(text: string): string {
  return text && `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

function revisionOf(id: string | null): string {
  return `revision ${shortId(id ?? '')}`;
}

/** True while the card's clock moves. */
export function isMoving(course: Course | null): boolean {
  return course !== null && isOpen(course);
}
