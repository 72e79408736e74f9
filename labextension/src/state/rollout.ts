// One deployment as its card shows it: read whole, then kept up by its own events; a reducer and the follower.
import { ApiError, type Transport } from '../api/transport';
import type { Deployment, Event } from '../api/wire.gen';
import { oneAtATime } from './app';
import { hubOf } from './hub';

/** What a card knows of its deployment: the fields that its output keeps, too. */
export type Course = Pick<
  Deployment,
  | 'deployment_id'
  | 'revision'
  | 'changed'
  | 'state'
  | 'kind'
  | 'strategy'
  | 'detach'
  | 'phases'
  | 'previous'
  | 'runner_id'
  | 'calls'
  | 'failed_calls'
  | 'created_at'
  | 'switched_at'
  | 'ended_at'
> &
  Partial<Pick<Deployment, 'error' | 'image'>>;

export interface RolloutView {
  course: Course | null;
  /** Number of the newest event in it. */
  event: number;
  /** How far this clock is ahead of the backend's in ms, as events tell; null before the first. */
  ahead: number | null;
  /** Whoever waited for it was told to leave. */
  isLeft: boolean;
}

export type RolloutAction =
  | { type: 'begin'; course: Course | null }
  | { type: 'read'; deployment: Deployment }
  | { type: 'event'; event: Event; at: number };

export const NO_ROLLOUT: RolloutView = { course: null, event: 0, ahead: null, isLeft: false };

/** Return the view after one action. */
export function reduceRollout(view: RolloutView, action: RolloutAction): RolloutView {
  switch (action.type) {
    case 'begin':
      return { ...NO_ROLLOUT, ahead: view.ahead, course: action.course };
    case 'read': {
      // The answer may have been on its way while an event came that it does not include, or another deployment was begun.
      const isLate = action.deployment.event < view.event || (view.course && view.course.deployment_id !== action.deployment.deployment_id);
      return isLate ? view : { ...view, course: { ...action.deployment, changed: view.course?.changed ?? true }, event: action.deployment.event };
    }
    case 'event':
      return reduceEvent(view, action.event, action.at);
  }
}

function reduceEvent(view: RolloutView, event: Event, at: number): RolloutView {
  const late = at - Date.parse(event.at);
  // Old events that are told again come late, never early.
  const ahead = Number.isFinite(late) ? Math.min(late, view.ahead ?? late) : view.ahead;
  const next = { ...view, ahead };
  const course = view.course;
  if (!course || course.deployment_id !== event.data['deployment_id'] || event.n <= view.event) {
    return next;
  }
  if (event.kind === 'deployment.left') {
    return { ...next, isLeft: true };
  }
  return event.kind === 'deployment.state' ? { ...next, event: event.n, course: { ...course, ...(event.data as Partial<Course>) } } : next;
}

const BEFORE = ['building', 'verifying', 'switching'];
const CLOSED = ['done', 'aborted', 'cancelled', 'superseded', 'failed'];

/** True while the alias is untouched and the outcome is open. */
export function isBeforeSwitch(course: Course): boolean {
  return BEFORE.includes(course.state);
}

/** True until nothing more comes of it. */
export function isOpen(course: Course): boolean {
  return !CLOSED.includes(course.state);
}

/** True when callers have its revision, or had it until another one came. */
export function isSuccess(course: Course): boolean {
  return course.state === 'draining' || course.state === 'done';
}

/** Read the deployment whenever the stream opens, and pass its events on; returns how to end that. */
export function followRollout(transport: Transport, id: string, dispatch: (action: RolloutAction) => void): () => void {
  const stop = new AbortController();
  const read = oneAtATime(async () => {
    try {
      dispatch({ type: 'read', deployment: await transport.json<Deployment>(`api/v1/deployments/${encodeURIComponent(id)}`, { signal: stop.signal }) });
    } catch (error) {
      if (!(error instanceof ApiError) && !stop.signal.aborted) {
        // The card itself says that the backend is away; the stream opens again with it.
        return;
      }
      // Forgotten by the backend: what the output keeps is all there is.
    }
  });
  const leave = hubOf(transport).add(news => {
    if (news.type === 'open') {
      read();
    } else if (news.type === 'event') {
      dispatch({ type: 'event', event: news.event, at: Date.now() });
    }
  });
  return () => {
    stop.abort();
    leave();
  };
}
