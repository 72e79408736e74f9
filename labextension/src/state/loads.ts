// How many calls each runner of an app has now, told by the backend while somebody looks.
import { useEffect, useState } from 'preact/hooks';
import type { Transport } from '../api/transport';

export type Loads = Record<string, number>;

const PAUSE_MS = 1_000;

/** Follow the loads of an app while they are wanted; empty else. */
export function useLoads(transport: Transport | null, alias: string, isWanted: boolean): Loads {
  const [loads, tell] = useState<Loads>({});
  useEffect(() => {
    if (!transport || !isWanted) {
      tell({});
      return;
    }
    const stop = new AbortController();
    void follow(transport, alias, stop.signal, tell);
    return () => stop.abort();
  }, [transport, alias, isWanted]);
  return loads;
}

async function follow(transport: Transport, alias: string, signal: AbortSignal, tell: (loads: Loads) => void): Promise<void> {
  while (!signal.aborted) {
    try {
      for await (const item of transport.events(`api/v1/apps/${encodeURIComponent(alias)}/loads`, signal)) {
        if (item !== 'open' && item.event === null) {
          tell(JSON.parse(item.data) as Loads);
        }
      }
    } catch {
      // The card says by its other stream that the backend is away; then the last events' numbers stand.
      if (!signal.aborted) {
        tell({});
      }
    }
    await new Promise(resolve => setTimeout(resolve, PAUSE_MS));
  }
}
