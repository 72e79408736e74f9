// Where a plan stands: it waits, it has become a deployment, or it is over. Asked for when the backend can be reached,
// and when a deployment of its app moves: it may be confirmed in another tab, and a notebook keeps only the plan.
import { ApiError, type Transport } from '../api/transport';
import type { Deployment, DeployPlan } from '../api/wire.gen';
import { oneAtATime } from './app';
import { hubOf } from './hub';

export type PlanNews =
  /** As it waits now: it may have been checked again since. */
  | { type: 'waiting'; plan: DeployPlan }
  | { type: 'begun'; deployment: Deployment }
  | { type: 'over' }
  | { type: 'away' };

/** Ask now, and again whenever the answer may be another one; returns how to end that. */
export function followPlan(transport: Transport, id: string, alias: string, tell: (news: PlanNews) => void): () => void {
  const stop = new AbortController();
  const ask = oneAtATime(async () => {
    const news = await standOf(transport, id, stop.signal);
    if (!stop.signal.aborted) {
      tell(news);
    }
  });
  const leave = hubOf(transport).add(news => {
    if (news.type === 'offline') {
      tell({ type: 'away' });
    } else if (news.type === 'open' || (news.event.app === alias && news.event.kind.startsWith('deployment.'))) {
      ask();
    }
  });
  return () => {
    stop.abort();
    leave();
  };
}

async function standOf(transport: Transport, id: string, signal: AbortSignal): Promise<PlanNews> {
  const path = `api/v1/plans/${encodeURIComponent(id)}`;
  try {
    return { type: 'waiting', plan: await transport.json<DeployPlan>(path, { signal }) };
  } catch (error) {
    if (!(error instanceof ApiError)) {
      return { type: 'away' };
    }
  }
  try {
    return { type: 'begun', deployment: await transport.json<Deployment>(`${path}/deployment`, { signal }) };
  } catch (error) {
    return { type: error instanceof ApiError ? 'over' : 'away' };
  }
}
