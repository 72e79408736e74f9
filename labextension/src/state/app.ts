// The state of one app as a card shows it: a reducer, and the follower that feeds it.
import { ApiError, OfflineError, type Transport } from '../api/transport';
import type { AppDetail, Deployment, ErrorBody, Event } from '../api/wire.gen';
import { hubOf, type HubNews } from './hub';

/** Everything known of one app. */
export interface AppView {
  detail: AppDetail | null;
  /** Number of the newest event in this view. */
  event: number;
  /** When the current phase was first seen, in ms since the epoch. */
  phaseSince: number;
  link: 'connecting' | 'live' | 'offline';
  offlineSince: number | null;
  offline: OfflineError | null;
  /** The backend does not know the app (any more). */
  isGone: boolean;
  goneReason: string | null;
  refusal: ErrorBody | null;
}

export type AppAction =
  | { type: 'read'; detail: AppDetail; at: number }
  | { type: 'gone' }
  | { type: 'refused'; error: ErrorBody }
  | { type: 'event'; event: Event; at: number }
  | { type: 'open' }
  | { type: 'offline'; at: number; reason: OfflineError | null };

export const NO_APP: AppView = {
  detail: null,
  event: 0,
  phaseSince: Date.now(),
  link: 'connecting',
  offlineSince: null,
  offline: null,
  isGone: false,
  goneReason: null,
  refusal: null
};

/** Return the view after one action. */
export function reduceApp(view: AppView, action: AppAction): AppView {
  switch (action.type) {
    case 'read':
      return {
        ...connected(view),
        detail: action.detail,
        event: Math.max(view.event, action.detail.event),
        phaseSince: phaseOf(view.detail) === phaseOf(action.detail) ? view.phaseSince : action.at,
        isGone: false,
        goneReason: null,
        refusal: null
      };
    case 'gone':
      return { ...connected(view), isGone: true };
    case 'refused':
      return { ...connected(view), refusal: action.error };
    case 'event':
      return reduceEvent(view, action.event, action.at);
    case 'open':
      return connected(view);
    case 'offline':
      return { ...view, link: 'offline', offlineSince: view.offlineSince ?? action.at, offline: action.reason };
  }
}

function connected(view: AppView): AppView {
  return { ...view, link: 'live', offlineSince: null, offline: null };
}

function reduceEvent(view: AppView, event: Event, at: number): AppView {
  if (event.n <= view.event) {
    return view;
  }
  const next = { ...view, event: event.n };
  if (event.kind === 'app.deleted') {
    return { ...next, goneReason: String(event.data['reason'] ?? '') || null };
  }
  const deployment = view.detail?.deployment;
  if (event.kind !== 'deployment.state' || !view.detail || !deployment || deployment.deployment_id !== event.data['deployment_id']) {
    return next;
  }
  const moved = { ...deployment, ...event.data } as Deployment;
  const detail = { ...view.detail, deployment: moved };
  return { ...next, detail, phaseSince: phaseOf(view.detail) === phaseOf(detail) ? view.phaseSince : at };
}

/** Return the phase that is being worked on, or the deployment's state where none is. */
export function phaseOf(detail: AppDetail | null): string {
  const deployment = detail?.deployment;
  const now = deployment?.phases.find(phase => phase.state === 'now');
  return `${deployment?.deployment_id ?? ''}/${now?.name ?? deployment?.state ?? ''}`;
}

/** Read the app now and again whenever something about it changed; returns how to end that. */
export function followApp(transport: Transport, alias: string, dispatch: (action: AppAction) => void): () => void {
  const stop = new AbortController();
  const read = oneAtATime(async () => {
    try {
      const detail = await transport.json<AppDetail>(`api/v1/apps/${encodeURIComponent(alias)}`, { signal: stop.signal });
      dispatch({ type: 'read', detail, at: Date.now() });
    } catch (error) {
      if (!stop.signal.aborted) {
        dispatch(failure(error));
      }
    }
  });
  const onNews = (news: HubNews): void => {
    if (news.type === 'event') {
      if (news.event.app === alias) {
        dispatch({ type: 'event', event: news.event, at: Date.now() });
        read();
      }
    } else if (news.type === 'open') {
      dispatch({ type: 'open' });
      read();
    } else {
      dispatch({ type: 'offline', at: news.at, reason: news.reason instanceof OfflineError ? news.reason : null });
    }
  };
  const leave = hubOf(transport).add(onNews);
  return () => {
    stop.abort();
    leave();
  };
}

function failure(error: unknown): AppAction {
  if (error instanceof ApiError) {
    return error.status === 404 ? { type: 'gone' } : { type: 'refused', error: error.error };
  }
  return { type: 'offline', at: Date.now(), reason: error instanceof OfflineError ? error : null };
}

/** Run the work now; calls during it lead to one more run after it. */
export function oneAtATime(work: () => Promise<void>): () => void {
  let isRunning = false;
  let isAsked = false;
  const run = async (): Promise<void> => {
    isRunning = true;
    do {
      isAsked = false;
      await work();
    } while (isAsked);
    isRunning = false;
  };
  return () => {
    isAsked = true;
    if (!isRunning) {
      void run();
    }
  };
}
