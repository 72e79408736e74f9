// How many calls each runner of an app has now, told by the backend while somebody looks.
import { useEffect, useState } from 'preact/hooks';
import type { Transport } from '../api/transport';
import { watchOf } from './watch';

export type Loads = Record<string, number>;

/** Follow the loads of an app while they are wanted; empty else. */
export function useLoads(transport: Transport | null, alias: string, isWanted: boolean): Loads {
  const [loads, tell] = useState<Loads>({});
  useEffect(() => {
    if (!transport || !isWanted) {
      tell({});
      return;
    }
    return watchOf(transport).add(`loads/${alias}`, {
      item: event => tell(JSON.parse(event.data) as Loads),
      // The card says by its events that the backend is away; then the last events' numbers stand.
      lost: () => tell({})
    });
  }, [transport, alias, isWanted]);
  return loads;
}
