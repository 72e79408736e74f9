// What an output in a notebook says of itself. It comes from a file: parsed, bounded, never trusted.
import type { DeployPlan, ErrorBody } from '../../api/wire.gen';

/** One endpoint, requirement line, capture, as saved; texts only. */
export interface Facts {
  endpoints: { method: string; path: string; name: string }[];
  machine: string | null;
  requirements: string[];
  captures: { name: string; size_bytes: number | null; kind: string; cell: { execution_count: number | null; cell_id: string | null } | null }[];
}

export interface Saved {
  kind: 'run' | 'deploy';
  instance: string;
  alias: string;
  revision: string | null;
  title: string;
  schema: string;
  stage: 'checking' | 'needs_fix' | 'sent';
  problem: ErrorBody | null;
  facts: Facts;
  savedAt: number | null;
}

type Raw = Record<string, unknown>;

/** Return what the data means; whatever is odd in it becomes its blank. */
export function readSaved(data: unknown): Saved {
  const raw = record(data);
  const alias = text(raw['app']).split('/').pop() ?? '';
  const stage = raw['stage'];
  return {
    kind: raw['kind'] === 'deploy' ? 'deploy' : 'run',
    instance: text(raw['instance']),
    alias,
    revision: text(raw['revision']) || null,
    title: text(raw['title']) || alias,
    schema: text(raw['schema'], 2_000_000),
    stage: stage === 'checking' || stage === 'needs_fix' ? stage : 'sent',
    problem: readProblem(raw['problem']),
    facts: readFacts(raw['facts']),
    savedAt: Date.parse(text(raw['saved_at'])) || null
  };
}

/** A plan as saved: enough of it is checked to draw it; it is never acted on, only its id is asked for. */
export interface SavedPlan {
  instance: string;
  plan: DeployPlan;
}

/** Return the plan in an output; null where the output is no plan, or an unreadable one. */
export function readPlan(data: unknown): SavedPlan | null {
  const raw = record(data);
  const plan = record(raw['plan']);
  const isWhole = ['source', 'image'].every(name => Object.keys(record(plan[name])).length) && ['settings', 'captures', 'endpoints'].every(name => Array.isArray(plan[name]));
  if (raw['kind'] !== 'plan' || !isWhole || !/^p-[0-9a-f]{16}$/.test(text(plan['plan_id']))) {
    return null;
  }
  return { instance: text(raw['instance']), plan: plan as unknown as DeployPlan };
}

function readProblem(data: unknown): ErrorBody | null {
  const raw = record(data);
  if (!raw['message']) {
    return null;
  }
  return {
    code: text(raw['code']),
    message: text(raw['message'], 4_000),
    fix: text(raw['fix'], 4_000) || null,
    where: raw['where'] ? record(raw['where']) : null,
    traceback: text(raw['traceback'], 100_000) || null,
    details: record(raw['details'])
  };
}

function readFacts(data: unknown): Facts {
  const raw = record(data);
  return {
    endpoints: list(raw['endpoints']).map(item => {
      const endpoint = record(item);
      return { method: 'POST', path: typeof item === 'string' ? text(item).replace(/^POST\s+/, '') : text(endpoint['path']), name: text(endpoint['method']) };
    }),
    machine: typeof raw['machine'] === 'string' ? text(raw['machine']) : list(raw['machine']).map(item => text(item)).join(', ') || null,
    requirements: list(raw['requirements']).flatMap(item => (Array.isArray(item) ? item : [item])).map(item => text(item)),
    captures: list(raw['captures']).map(item => {
      const capture = record(item);
      const cell = capture['cell'] ? record(capture['cell']) : null;
      const size = capture['size_bytes'];
      return {
        name: typeof item === 'string' ? text(item) : text(capture['name']),
        kind: text(capture['kind']),
        size_bytes: typeof size === 'number' ? size : null,
        cell: cell && { execution_count: typeof cell['execution_count'] === 'number' ? cell['execution_count'] : null, cell_id: text(cell['cell_id']) || null }
      };
    })
  };
}

function record(value: unknown): Raw {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Raw) : {};
}

function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value.slice(0, 200) : [];
}

function text(value: unknown, limit = 500): string {
  return typeof value === 'string' ? value.slice(0, limit) : typeof value === 'number' ? String(value) : '';
}
