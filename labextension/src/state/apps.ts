// The list of apps as the panel shows it: a reducer, and the follower that feeds it.
import { ApiError, OfflineError, type Transport } from '../api/transport';
import type { AppSummary, ErrorBody, Instance } from '../api/wire.gen';
import { oneAtATime } from './app';
import { hubOf } from './hub';

/** Everything that the panel knows. */
export interface AppsView {
  apps: AppSummary[] | null;
  instance: Instance | null;
  link: 'connecting' | 'live' | 'offline';
  offlineSince: number | null;
  offline: OfflineError | null;
  readAt: number | null;
  refusal: ErrorBody | null;
}

export type AppsAction =
  | { type: 'read'; apps: AppSummary[]; instance: Instance; at: number }
  | { type: 'refused'; error: ErrorBody }
  | { type: 'offline'; at: number; reason: OfflineError | null };

export const NO_APPS: AppsView = {
  apps: null,
  instance: null,
  link: 'connecting',
  offlineSince: null,
  offline: null,
  readAt: null,
  refusal: null
};

/** Return the view after one action. */
export function reduceApps(view: AppsView, action: AppsAction): AppsView {
  switch (action.type) {
    case 'read':
      return { ...NO_APPS, link: 'live', apps: action.apps, instance: action.instance, readAt: action.at };
    case 'refused':
      return { ...view, link: 'live', offline: null, offlineSince: null, refusal: action.error };
    case 'offline':
      return { ...view, link: 'offline', offlineSince: view.offlineSince ?? action.at, offline: action.reason };
  }
}

/** Read the list now and after every event about an app; returns how to end that. */
export function followApps(transport: Transport, dispatch: (action: AppsAction) => void): () => void {
  const stop = new AbortController();
  const signal = stop.signal;
  const read = oneAtATime(async () => {
    try {
      const [instance, all] = await Promise.all([
        transport.json<Instance>('api/v1/instance', { signal }),
        transport.json<{ apps: AppSummary[] }>('api/v1/apps?ephemeral=1', { signal })
      ]);
      dispatch({ type: 'read', apps: all.apps, instance, at: Date.now() });
    } catch (error) {
      if (!signal.aborted) {
        dispatch(failure(error));
      }
    }
  });
  const leave = hubOf(transport).add(news => {
    if (news.type === 'offline') {
      dispatch({ type: 'offline', at: news.at, reason: news.reason instanceof OfflineError ? news.reason : null });
    } else if (news.type === 'open' || news.event.app) {
      read();
    }
  });
  return () => {
    stop.abort();
    leave();
  };
}

function failure(error: unknown): AppsAction {
  if (error instanceof ApiError) {
    return { type: 'refused', error: error.error };
  }
  return { type: 'offline', at: Date.now(), reason: error instanceof OfflineError ? error : null };
}
