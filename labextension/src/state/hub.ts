// One event stream for each backend, shared by all cards and the panel of a page.
//
// A browser opens six connections to a server at most; a stream for each card would use them up.
// Listeners read their own state whenever the stream opens, so nothing is missed in between.
import { OfflineError, type Transport } from '../api/transport';
import type { Event } from '../api/wire.gen';

/** What a listener is told. */
export type HubNews =
  | { type: 'open' }
  | { type: 'event'; event: Event }
  | { type: 'offline'; at: number; reason: OfflineError | Error };

type Listener = (news: HubNews) => void;

const hubs = new Map<string, Hub>();
const LONGEST_WAIT_MS = 8_000;

class Hub {
  private readonly listeners = new Set<Listener>();
  private stop: AbortController | null = null;
  private wake: (() => void) | null = null;
  private state: HubNews | null = null;
  private last: string | undefined;

  constructor(private readonly transport: Transport) {}

  add(listener: Listener): () => void {
    this.listeners.add(listener);
    if (!this.stop) {
      this.stop = new AbortController();
      void this.follow(this.stop.signal);
    } else if (this.state) {
      listener(this.state);
    }
    return () => this.remove(listener);
  }

  /** Try again now instead of at the end of the wait. */
  retry(): void {
    this.wake?.();
  }

  private remove(listener: Listener): void {
    this.listeners.delete(listener);
    if (!this.listeners.size) {
      this.stop?.abort();
      this.stop = null;
      this.state = null;
    }
  }

  private tell(news: HubNews): void {
    this.listeners.forEach(listener => listener(news));
  }

  private settle(news: HubNews): void {
    this.state = news;
    this.tell(news);
  }

  private async follow(signal: AbortSignal): Promise<void> {
    let wait_ms = 250;
    while (!signal.aborted) {
      try {
        for await (const item of this.transport.events('api/v1/events', signal, this.last)) {
          wait_ms = 250;
          if (item === 'open') {
            this.settle({ type: 'open' });
          } else if (item.event === 'reset') {
            this.last = undefined;
            this.tell({ type: 'open' });
          } else {
            this.last = item.id ?? this.last;
            this.tell({ type: 'event', event: JSON.parse(item.data) as Event });
          }
        }
      } catch (error) {
        if (signal.aborted) {
          return;
        }
        this.settle({ type: 'offline', at: Date.now(), reason: error instanceof Error ? error : new Error(String(error)) });
      }
      await this.pause(wait_ms);
      wait_ms = Math.min(wait_ms * 2, LONGEST_WAIT_MS);
    }
  }

  private pause(limit_ms: number): Promise<void> {
    return new Promise(resolve => {
      const timer = setTimeout(resolve, limit_ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

/** Return the hub of this backend. */
export function hubOf(transport: Transport): Hub {
  const found = hubs.get(transport.key) ?? new Hub(transport);
  hubs.set(transport.key, found);
  return found;
}
