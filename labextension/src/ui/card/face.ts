// Which of its states a card is in, in words: a pure function of what was saved and what is known now.
import type { AppView } from '../../state/app';
import type { AppDetail, Deployment, DeploymentPhase, ErrorBody } from '../../api/wire.gen';
import type { Phase, StatusKind } from '../base/parts';
import { ago, clock, seconds, shortId } from '../words';
import type { Saved } from './saved';

export type Mode = 'checking' | 'needs_fix' | 'progress' | 'ready' | 'failed' | 'ended' | 'offline' | 'saved' | 'connecting';

export interface Face {
  mode: Mode;
  kind: StatusKind;
  word: string;
  meta: string;
  /** What the tooltip of meta and remark adds: the whole revision. */
  hint: string | null;
  phases: Phase[] | null;
  problem: ErrorBody | null;
  /** What still works beside a failure. */
  remark: string | null;
}

const IN_PROGRESS = ['building', 'verifying', 'switching'];
const FAILED = ['aborted', 'failed'];
const STALE_CHECK_MS = 120_000;

/** Return the face; `known` is false where no backend of that id can be reached from here. */
export function faceOf(saved: Saved, view: AppView, known: boolean | null, now: number): Face {
  if (saved.stage === 'checking' && now - (saved.savedAt ?? 0) < STALE_CHECK_MS) {
    return { ...blank('checking', 'busy', 'Checking', 'before anything is sent'), phases: checkTrack() };
  }
  if (saved.stage === 'needs_fix') {
    return { ...blank('needs_fix', 'warn', 'Needs a fix', 'nothing was sent'), problem: saved.problem };
  }
  if (known === false || saved.stage === 'checking') {
    return { ...blank('saved', 'idle', 'Saved view', savedMeta(saved)), problem: saved.problem };
  }
  if (view.link === 'offline') {
    const since = view.offlineSince ?? now;
    return blank('offline', 'offline', 'Not connected', `state from ${clock(since)}, ${ago(since, now)}`);
  }
  if (view.isGone) {
    return goneFace(saved, view);
  }
  if (view.refusal) {
    return { ...blank('failed', 'err', 'Not readable', ''), problem: view.refusal };
  }
  return view.detail ? liveFace(saved, view, view.detail, now) : blank('connecting', 'busy', 'Connecting', '');
}

function blank(mode: Mode, kind: StatusKind, word: string, meta: string): Face {
  return { mode, kind, word, meta, hint: null, phases: null, problem: null, remark: null };
}

function checkTrack(): Phase[] {
  return ['Check', 'Build', 'Start', 'Setup'].map((name, index) => ({ name, state: index ? 'next' : 'now', time: null }));
}

function savedMeta(saved: Saved): string {
  const date = saved.savedAt ? new Date(saved.savedAt) : null;
  return date ? `what this cell showed on ${date.toLocaleDateString(undefined, { day: 'numeric', month: 'short' })}, ${clock(date.getTime())}` : 'what this cell showed';
}

function goneFace(saved: Saved, view: AppView): Face {
  if (saved.problem) {
    return { ...blank('failed', 'err', failedWord(saved.problem, null), ''), problem: saved.problem };
  }
  if (saved.kind === 'deploy') {
    return blank('ended', 'off', 'Deleted', 'callers get 404');
  }
  return blank('ended', 'off', 'Stopped', GONE[view.goneReason ?? ''] ?? '');
}

const GONE: Record<string, string> = {
  stopped: 'by you',
  deleted: 'by you',
  user: 'by you',
  session_ended: 'its kernel ended',
  session: 'its kernel ended',
  replaced: 'run again elsewhere'
};

function liveFace(saved: Saved, view: AppView, detail: AppDetail, now: number): Face {
  const deployment = detail.deployment;
  const phases = deployment ? trackOf(deployment, view.phaseSince, now) : null;
  if (deployment && IN_PROGRESS.includes(deployment.state)) {
    return { ...blank('progress', 'busy', progressWord(deployment), progressMeta(deployment, detail)), phases };
  }
  if (deployment && FAILED.includes(deployment.state)) {
    return failedFace(deployment, detail, phases);
  }
  if (deployment?.state === 'cancelled' && !detail.revision) {
    return { ...blank('ended', 'off', 'Cancelled', 'before it was ready'), phases };
  }
  return { ...servingFace(saved, detail, now), phases, hint: hintOf(detail) };
}

function servingFace(saved: Saved, detail: AppDetail, now: number): Face {
  const life = detail.ephemeral ? 'temporary, ends with this kernel' : `revision ${shortId(detail.revision ?? '')}, ${ago(Date.parse(detail.deployed_at), now)}`;
  switch (detail.state) {
    case 'failing':
      return { ...blank('failed', 'err', 'Failing', detail.state_reason ?? life), problem: lastError(detail) };
    case 'starting':
    case 'deploying':
      return blank('progress', 'busy', 'Starting', runnerMeta(detail));
    case 'idle':
      return blank('ready', 'idle', 'Idle', 'no runner is up, the next request starts one');
    case 'serving':
      return blank('ready', 'ok', saved.kind === 'deploy' ? 'Deployed' : 'Ready', life);
  }
}

function hintOf(detail: AppDetail): string | null {
  return detail.revision && `revision ${detail.revision}`;
}

function lastError(detail: AppDetail): ErrorBody | null {
  return detail.runners.find(runner => runner.error)?.error ?? null;
}

function failedFace(deployment: Deployment, detail: AppDetail, phases: Phase[] | null): Face {
  const failed = deployment.phases.find(phase => phase.state === 'failed');
  const runner = detail.runners[0];
  const where = runner && failed?.name !== 'build' ? ` on runner ${shortRunner(runner.runner_id)}` : '';
  const meta = failed?.duration_s != null ? `after ${seconds(failed.duration_s)}${where}` : '';
  const serves = detail.revision && detail.revision !== deployment.revision;
  return {
    ...blank('failed', 'err', failedWord(deployment.error, failed ?? null), meta),
    phases,
    problem: deployment.error,
    hint: serves ? hintOf(detail) : null,
    remark: serves ? `Revision ${shortId(detail.revision ?? '')} keeps serving.` : null
  };
}

function failedWord(error: ErrorBody | null, failed: DeploymentPhase | null): string {
  if (failed?.name === 'build' || error?.code.startsWith('image.')) {
    return 'Build failed';
  }
  if (failed?.name === 'start') {
    return 'Start failed';
  }
  return failed || error?.code.startsWith('runner.') ? 'Setup failed' : 'Failed';
}

const PROGRESS: Record<string, string> = { build: 'Building', start: 'Starting', setup: 'Setup', ready: 'Starting' };

function progressWord(deployment: Deployment): string {
  const now = deployment.phases.find(phase => phase.state === 'now');
  return PROGRESS[now?.name ?? (deployment.state === 'building' ? 'build' : 'start')] ?? 'Starting';
}

function progressMeta(deployment: Deployment, detail: AppDetail): string {
  const isBuilding = deployment.state === 'building';
  return isBuilding ? (deployment.image ? `image ${deployment.image.hash.slice(0, 8)}` : '') : runnerMeta(detail);
}

function runnerMeta(detail: AppDetail): string {
  const runner = detail.runners.find(one => !one.ended_at);
  return runner ? `runner ${shortRunner(runner.runner_id)} on ${runner.node === 'local' ? 'this machine' : runner.node}` : '';
}

/** `r-` and four digits are enough to tell runners apart by eye. */
export function shortRunner(id: string): string {
  return /^r-/.test(id) ? id.slice(0, 6) : 'r-' + id.slice(0, 4);
}

const NAMES: Record<string, string> = { build: 'Build', start: 'Start', setup: 'Setup', ready: 'Ready' };

function trackOf(deployment: Deployment, since: number, now: number): Phase[] {
  const shown = deployment.phases.filter(phase => phase.name !== 'ready' || phase.state === 'failed');
  const track: Phase[] = shown.map(phase => ({ name: NAMES[phase.name] ?? phase.name, state: phase.state, time: timeOf(phase, since, now) }));
  return [{ name: 'Check', state: 'done', time: null }, ...track];
}

function timeOf(phase: DeploymentPhase, since: number, now: number): string | null {
  if (phase.state === 'cached') {
    return 'cached';
  }
  if (phase.state === 'now') {
    return now - since > 900 ? seconds((now - since) / 1_000) : null;
  }
  // Under a millisecond there is nothing to tell.
  return phase.duration_s === null || phase.duration_s < 0.001 ? null : seconds(phase.duration_s);
}
