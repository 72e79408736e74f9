// Server-sent events out of a fetch body. Source: WHATWG HTML, "Server-sent events".
import type { ServerEvent } from './transport';

/** Turn chunks of text, cut anywhere, into events. */
export class Decoder {
  private rest = '';

  feed(chunk: string): ServerEvent[] {
    const blocks = (this.rest + chunk).replace(/\r\n/g, '\n').split('\n\n');
    this.rest = blocks.pop() ?? '';
    return blocks.map(parse).filter(event => event !== null);
  }
}

function parse(block: string): ServerEvent | null {
  const data: string[] = [];
  let id: string | null = null;
  let event: string | null = null;
  for (const line of block.split('\n')) {
    const colon = line.indexOf(':');
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (name === 'data') {
      data.push(value);
    } else if (name === 'id') {
      id = value;
    } else if (name === 'event') {
      event = value;
    }
  }
  return data.length ? { data: data.join('\n'), id, event } : null;
}

/**
 * Yield the events of a response body.
 * A body silent for `silence_ms` is given up: the server sends a comment at least every 10 s.
 */
export async function* readEvents(response: Response, silence_ms = 0): AsyncGenerator<ServerEvent> {
  if (!response.body) {
    return;
  }
  const reader = response.body.getReader();
  const text = new TextDecoder();
  const decoder = new Decoder();
  try {
    for (;;) {
      const { done, value } = await withDeadline(reader.read(), silence_ms);
      if (done) {
        return;
      }
      yield* decoder.feed(text.decode(value, { stream: true }));
    }
  } finally {
    // A stream that failed has nothing left to cancel.
    reader.cancel().catch(() => undefined);
  }
}

async function withDeadline<T>(wait: Promise<T>, limit_ms: number): Promise<T> {
  if (!limit_ms) {
    return wait;
  }
  let timer = 0;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('the stream fell silent')), limit_ms) as unknown as number;
  });
  try {
    return await Promise.race([wait, late]);
  } finally {
    clearTimeout(timer);
  }
}
