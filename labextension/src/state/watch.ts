// One stream for each backend for all that cards watch beside events: loads of apps, and logs as they grow.
//
// A browser opens six connections to a server at most; a stream for each card would use them up, and ordinary calls
// would wait for ever. Whoever begins or ends to watch has the stream asked for anew; logs go on where they were.
import type { ServerEvent, Transport } from '../api/transport';

/** What is told to whoever watches a thing. */
export interface Watcher {
  /** It is told from its beginning now. */
  open?(): void;
  item(event: ServerEvent): void;
  /** Nothing more comes of it: `end`, or `error` for what is not there. */
  ended?(): void;
  /** The stream broke; it is asked for again. */
  lost?(): void;
}

interface Topic {
  name: string;
  watcher: Watcher;
  /** Id of the last item, for what can be gone on with. */
  last: string | null;
  isEnded: boolean;
}

const SETTLE_MS = 20;
/** What a backend tells in one stream. */
const MOST = 64;
const SHORTEST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8_000;

/** Offsets of one log can be gone on from; lines of several runners come in no order of their own. */
const RESUMED = /^(runner|image)\//;

export class Watch {
  private readonly topics = new Set<Topic>();
  private stop: AbortController | null = null;
  private timer: ReturnType<typeof setTimeout> | null = null;
  private wait_ms = SHORTEST_WAIT_MS;

  constructor(private readonly transport: Transport) {}

  /** Watch a thing; returns how to end that. */
  add(name: string, watcher: Watcher): () => void {
    const topic: Topic = { name, watcher, last: null, isEnded: false };
    this.topics.add(topic);
    this.ask(SETTLE_MS);
    return () => {
      this.topics.delete(topic);
      this.ask(SETTLE_MS);
    };
  }

  /** Ask for the stream anew after a while: what changes together is asked for once. */
  private ask(after_ms: number): void {
    if (this.timer) {
      clearTimeout(this.timer);
    }
    this.timer = setTimeout(() => {
      this.timer = null;
      this.stop?.abort();
      this.stop = null;
      const topics = [...this.topics].filter(topic => !topic.isEnded).slice(0, MOST);
      if (topics.length) {
        this.stop = new AbortController();
        void this.follow(topics, this.stop.signal);
      }
    }, after_ms);
  }

  private async follow(topics: Topic[], signal: AbortSignal): Promise<void> {
    try {
      await this.read(topics, signal);
    } catch {
      // The cards say by their events that the backend is away; here it is asked again.
    }
    if (!signal.aborted) {
      topics.filter(topic => this.topics.has(topic)).forEach(topic => topic.watcher.lost?.());
      this.ask(this.wait_ms);
      this.wait_ms = Math.min(this.wait_ms * 2, LONGEST_WAIT_MS);
    }
  }

  private async read(topics: Topic[], signal: AbortSignal): Promise<void> {
    const query = topics.map(topic => `on=${encodeURIComponent(topic.name + (topic.last === null ? '' : `@${topic.last}`))}`).join('&');
    let topic: Topic | undefined;
    for await (const item of this.transport.events(`api/v1/watch?${query}`, signal)) {
      if (signal.aborted) {
        return;
      }
      if (item === 'open') {
        this.wait_ms = SHORTEST_WAIT_MS;
        topics.filter(one => one.last === null).forEach(one => one.watcher.open?.());
      } else if (item.event === 'of') {
        topic = topics[Number(item.data)];
      } else if (topic && this.topics.has(topic)) {
        pass(topic, item);
        if (topics.every(one => one.isEnded)) {
          this.ask(SETTLE_MS);
        }
      }
    }
  }
}

function pass(topic: Topic, item: ServerEvent): void {
  if (item.event === 'end' || item.event === 'error') {
    topic.isEnded = true;
    topic.watcher.ended?.();
    return;
  }
  if (item.id !== null && RESUMED.test(topic.name)) {
    topic.last = item.id;
  }
  topic.watcher.item(item);
}

const watches = new Map<string, Watch>();

/** Return the watch of this backend. */
export function watchOf(transport: Transport): Watch {
  const found = watches.get(transport.key) ?? new Watch(transport);
  watches.set(transport.key, found);
  return found;
}
