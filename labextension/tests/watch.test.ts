// What cards watch of a backend: one stream for all of them, gone on with where it was.
import assert from 'node:assert/strict';
import test from 'node:test';
import { ApiError, type ServerEvent, type Transport } from '../src/api/transport';
import type { Deployment, DeployPlan } from '../src/api/wire.gen';
import { followLog, reduceLog, NO_LOG, type LogView } from '../src/state/logs';
import { followPlan, type PlanNews } from '../src/state/plan';
import { Watch } from '../src/state/watch';

/** One request for a stream, and what a test sends on it. */
class Asked {
  private readonly waiting: (ServerEvent | 'open' | 'broken')[] = [];
  private wake: () => void = () => undefined;

  constructor(
    readonly path: string,
    readonly signal: AbortSignal
  ) {
    signal.addEventListener('abort', () => this.wake());
  }

  get topics(): string[] {
    return new URLSearchParams(this.path.split('?')[1]).getAll('on');
  }

  send(...items: (ServerEvent | 'open' | 'broken')[]): void {
    this.waiting.push(...items);
    this.wake();
  }

  /** Send what belongs to one of the topics. */
  tell(number: number, data: string, id: string | null = null, event: string | null = null): void {
    this.send({ event: 'of', data: String(number), id: null }, { event, data, id });
  }

  async *read(): AsyncGenerator<ServerEvent | 'open'> {
    while (!this.signal.aborted) {
      const item = this.waiting.shift();
      if (item === 'broken') {
        throw new Error('broken');
      } else if (item) {
        yield item;
      } else {
        await new Promise<void>(resolve => (this.wake = resolve));
      }
    }
  }
}

let number = 0;

function backend(answers: Record<string, unknown> = {}): { asked: Asked[]; transport: Transport; next: (count: number) => Promise<Asked> } {
  const asked: Asked[] = [];
  const transport = {
    key: `t${number++}`,
    async json(path: string) {
      if (!(path in answers)) {
        throw new ApiError(404, { code: 'deploy.plan_not_found', message: 'x', fix: null, where: null, traceback: null, details: {} });
      }
      return answers[path];
    },
    events(path: string, signal: AbortSignal) {
      const one = new Asked(path, signal);
      asked.push(one);
      return one.read();
    }
  } as unknown as Transport;
  const next = async (count: number): Promise<Asked> => {
    await until(() => asked.length >= count);
    return asked[count - 1] as Asked;
  };
  return { asked, transport, next };
}

async function until(check: () => boolean): Promise<void> {
  const end = Date.now() + 10_000;
  while (!check()) {
    assert.ok(Date.now() < end, 'not in time');
    await new Promise(resolve => setTimeout(resolve, 2));
  }
}

test('cards that are drawn together share one stream, and each hears of its own', async () => {
  const { asked, transport, next } = backend();
  const watch = new Watch(transport);
  const heard: string[] = [];
  for (const name of ['loads/a', 'runner/r1', 'loads/b', 'runner/r2']) {
    watch.add(name, { item: event => heard.push(`${name} ${event.data}`) });
  }
  const stream = await next(1);
  assert.deepEqual(stream.topics, ['loads/a', 'runner/r1', 'loads/b', 'runner/r2']);
  stream.send('open');
  stream.tell(3, 'x', '9');
  stream.tell(0, '{}');
  await until(() => heard.length === 2);
  assert.deepEqual(heard, ['runner/r2 x', 'loads/a {}']);
  assert.equal(asked.length, 1);
});

test('a log goes on where it was when another card comes, breaks or ends', async () => {
  const { transport, next } = backend();
  const watch = new Watch(transport);
  const heard: string[] = [];
  watch.add('runner/r1', { open: () => heard.push('open'), item: event => heard.push(event.data), ended: () => heard.push('ended'), lost: () => heard.push('lost') });
  const first = await next(1);
  first.send('open');
  first.tell(0, 'one', '40');
  await until(() => heard.length === 2);
  const leave = watch.add('app/a', { item: () => undefined });
  const second = await next(2);
  assert.equal(first.signal.aborted, true);
  assert.deepEqual(second.topics, ['runner/r1@40', 'app/a']);
  second.send('open', 'broken');
  const third = await next(3);
  assert.deepEqual(third.topics, ['runner/r1@40', 'app/a']);
  third.send('open');
  third.tell(0, 'two', '44');
  third.tell(0, '{}', null, 'end');
  await until(() => heard.at(-1) === 'ended');
  assert.deepEqual(heard, ['open', 'one', 'lost', 'two', 'ended']);
  leave();
  await until(() => third.signal.aborted);
});

test('lines that are told again take the place of the old ones', async () => {
  const { transport, next } = backend();
  let view: LogView = NO_LOG;
  followLog(transport, { app: 'a' }, true, action => (view = reduceLog(view, action)));
  const line = (text: string): string => JSON.stringify({ offset: 1, at: '', stream: 'stdout', text });
  const first = await next(1);
  first.send('open');
  first.tell(0, line('one'), '1');
  await until(() => view.lines.length === 1);
  first.send('broken');
  const second = await next(2);
  second.send('open');
  assert.deepEqual(second.topics, ['app/a']);
  second.tell(0, line('one'), '1');
  second.tell(0, line('two'), '2');
  await until(() => view.lines.length === 2);
  assert.deepEqual(view.lines.map(one => one.text), ['one', 'two']);
});

test('a plan is looked for among those that wait, then among the deployments', async () => {
  const answers: Record<string, unknown> = { 'api/v1/plans/p-1': { plan_id: 'p-2' } as DeployPlan };
  const { transport, next } = backend(answers);
  const news: PlanNews[] = [];
  const leave = followPlan(transport, 'p-1', 'digits', one => news.push(one));
  const events = await next(1);
  events.send('open');
  await until(() => news.length === 1);
  assert.deepEqual(news[0], { type: 'waiting', plan: { plan_id: 'p-2' } });
  delete answers['api/v1/plans/p-1'];
  const move = (app: string): ServerEvent => ({ event: null, id: '7', data: JSON.stringify({ n: 7, kind: 'deployment.state', app, data: {}, at: '', subject: '' }) });
  events.send(move('digits'));
  await until(() => news.length === 2);
  assert.deepEqual(news[1], { type: 'over' });
  answers['api/v1/plans/p-1/deployment'] = { deployment_id: 'd-1' } as Deployment;
  events.send(move('other'), move('digits'));
  await until(() => news.length === 3);
  assert.deepEqual(news[2], { type: 'begun', deployment: { deployment_id: 'd-1' } });
  leave();
});
