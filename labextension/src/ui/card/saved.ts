// What an output in a notebook says of itself. It comes from a file: parsed, bounded, never trusted.
import type { DeploymentPhase, DeployPlan, ErrorBody, Uploaded } from '../../api/wire.gen';
import type { Course } from '../../state/rollout';

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
  /** The deployment as it was when the output was written; null for temporary apps and before it was sent. */
  course: Course | null;
  upload: Uploaded | null;
  /** The upload was with a plan, some time before it was confirmed. */
  isPlanned: boolean;
  /** The cell waits for it. */
  isWaiting: boolean;
  isLeft: boolean;
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
    savedAt: Date.parse(text(raw['saved_at'])) || null,
    course: raw['kind'] === 'deploy' ? readCourse(raw['rollout']) : null,
    upload: readUpload(raw['upload']),
    isPlanned: raw['is_planned'] === true,
    isWaiting: raw['is_waiting'] === true,
    isLeft: raw['is_left'] === true
  };
}

const STATES = ['building', 'verifying', 'switching', 'draining', 'rolling_out', 'done', 'aborted', 'cancelled', 'superseded', 'failed'];
const PHASES = ['build', 'start', 'setup', 'ready'];
const MARKS = ['next', 'now', 'done', 'cached', 'failed'];

function readCourse(data: unknown): Course | null {
  const raw = record(data);
  const id = text(raw['deployment_id']);
  const created = moment(raw['created_at']);
  if (!/^d-[0-9a-f-]{8,64}$/.test(id) || !STATES.includes(text(raw['state'])) || created === null) {
    return null;
  }
  const kind = text(raw['kind']);
  return {
    deployment_id: id,
    revision: text(raw['revision']) || null,
    changed: raw['changed'] !== false,
    state: text(raw['state']) as Course['state'],
    kind: kind === 'set_rev' || kind === 'split' || kind === 'restart' ? kind : 'deploy',
    strategy: raw['strategy'] === 'recreate' ? 'recreate' : 'rolling',
    detach: raw['detach'] === true,
    phases: list(raw['phases']).flatMap(readPhase),
    previous: text(raw['previous']) || null,
    runner_id: text(raw['runner_id']) || null,
    calls: amount(raw['calls']),
    failed_calls: amount(raw['failed_calls']),
    created_at: created,
    switched_at: moment(raw['switched_at']),
    ended_at: moment(raw['ended_at'])
  };
}

function readPhase(data: unknown): DeploymentPhase[] {
  const raw = record(data);
  const [name, state] = [text(raw['name']), text(raw['state'])];
  const isKnown = PHASES.includes(name) && MARKS.includes(state);
  return isKnown ? [{ name: name as DeploymentPhase['name'], state: state as DeploymentPhase['state'], began_at: moment(raw['began_at']), duration_s: amount(raw['duration_s']) }] : [];
}

/** Return what was sent, as saved; null where it is not known. */
export function readUpload(data: unknown): Uploaded | null {
  const raw = record(data);
  const [parts, isNew, size, took] = ['parts', 'new_parts', 'new_bytes', 'duration_s'].map(name => amount(raw[name]));
  return parts == null || isNew == null || size == null || took == null ? null : { parts, new_parts: isNew, new_bytes: size, duration_s: took };
}

/** A plan as saved: enough of it is checked to draw it; it is never acted on, only its id is asked for. */
export interface SavedPlan {
  instance: string;
  plan: DeployPlan;
  /** What does the same in a script; empty where that is not known. */
  command: string;
  checked_s: number | null;
  upload: Uploaded | null;
  /** It was confirmed with the cell; the deployment has a card of its own below. */
  goesOn: boolean;
}

/** Return the plan in an output; null where the output is no plan, or an unreadable one. */
export function readPlan(data: unknown): SavedPlan | null {
  const raw = record(data);
  const plan = record(raw['plan']);
  const isWhole = ['source', 'image'].every(name => Object.keys(record(plan[name])).length) && ['settings', 'captures', 'endpoints'].every(name => Array.isArray(plan[name]));
  if (raw['kind'] !== 'plan' || !isWhole || !/^p-[0-9a-f]{16}$/.test(text(plan['plan_id']))) {
    return null;
  }
  return {
    instance: text(raw['instance']),
    plan: plan as unknown as DeployPlan,
    command: text(raw['command']),
    checked_s: amount(raw['checked_s']),
    upload: readUpload(raw['upload']),
    goesOn: raw['goes_on'] === true
  };
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

function amount(value: unknown): number | null {
  return typeof value === 'number' && value >= 0 && Number.isFinite(value) ? value : null;
}

function moment(value: unknown): string | null {
  return typeof value === 'string' && Number.isFinite(Date.parse(value)) ? value : null;
}

function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value.slice(0, 200) : [];
}

function text(value: unknown, limit = 500): string {
  return typeof value === 'string' ? value.slice(0, limit) : typeof value === 'number' ? String(value) : '';
}
